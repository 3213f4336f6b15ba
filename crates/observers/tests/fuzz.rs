//! The fuzz targets' bodies, each over inputs that are made of real ones by
//! chance (`fuzz/smoke.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

#[path = "../../../fuzz/bodies/container_path.rs"]
mod container_path;
#[path = "../../../fuzz/bodies/event_line.rs"]
mod event_line;
#[path = "../../../fuzz/bodies/proc.rs"]
mod proc;
#[path = "../../../fuzz/bodies/recording.rs"]
mod recording;
#[path = "../../../fuzz/bodies/records.rs"]
mod records;
#[path = "../../../fuzz/smoke.rs"]
mod smoke;
#[path = "../../../fuzz/bodies/text.rs"]
mod text;

use smoke::try_inputs;

#[test]
fn any_cgroup_path_is_classified() {
    let corpus = include_str!("../src/container/cgroup-paths.tsv");
    let paths = corpus.lines().filter_map(|line| line.split('\t').next());
    try_inputs(container_path::run, &paths.map(|path| path.into()).collect::<Vec<_>>());
}

#[test]
fn any_record_is_an_event_or_malformed() {
    // The observer, one of its real records, and what to change in it.
    let real = (0..2).flat_map(|observer| (0..40).map(move |which| vec![observer, which]));
    // None of them: what follows is the record.
    let made_up = (0..2).map(|observer| [vec![observer, 255], vec![0; 200]].concat());
    try_inputs(records::run, &real.chain(made_up).collect::<Vec<_>>());
}

#[test]
fn any_text_is_shown_without_harm_and_without_loss() {
    let texts: [&[u8]; 12] = [
        b"2023-11-14T22:13:20.000000005Z",
        b"01M81PH5ZWY7DYPJYS6BM8GEQB",
        b"4bf92f3577b34da6a3ce929d0e0e4736",
        b"00f067aa0ba902b7",
        b"500ms",
        b"16 GiB",
        b"18446744073709551615d",
        b"6b1e1d9a-f124-c0e9-d0f3-c5b7a294e180",
        b"\\x1b[31m\x1b[0m\\",
        "gr\u{fc}n \u{202e}\u{1f980}".as_bytes(),
        b"\xff\xfe\x80",
        b"",
    ];
    try_inputs(text::run, &texts.map(<[u8]>::to_vec));
}

#[test]
fn any_line_is_an_event_that_is_written_as_it_was_read_or_an_error() {
    // One of the real lines, and what to change in it.
    let real = (0..9).map(|which| vec![which]);
    // None of them: what follows is the line.
    let golden = include_str!("../../runtime/src/event/json/decode/golden.jsonl");
    let whole = golden.lines().map(|line| [&[255], line.as_bytes()].concat());
    try_inputs(event_line::run, &real.chain(whole).collect::<Vec<_>>());
}

#[test]
fn any_recording_is_read_as_it_was_written_or_refused() {
    let real = include_str!("fixtures/network.rec");
    let lines: Vec<&str> = real.lines().collect();
    let short = lines[..8].join("\n");
    // Records are long: what an input holds of one is cut.
    let made = "kernel 1 2 3 4 00ff\ntick 18446744073709551615 2 3 4 \nfact 1 2 3 4 0f\n";
    let header = lines[..6].join("\n");
    try_inputs(recording::run, &[short.into(), format!("{header}\n{made}").into(), made.into()]);
}

#[test]
fn any_file_of_proc_is_understood_or_nothing() {
    let files: [&[u8]; 5] = [
        b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t5\t1\nmemory\t4\t9\t1\n",
        b"Name:\tx\nCapEff:\t000000c000000000\nSeccomp:\t2\n",
        b"CapEff:\tffffffffffffffffff\n",
        b"6.12.107+deb13-cloud-amd64\n",
        b"",
    ];
    try_inputs(proc::run, &files.map(<[u8]>::to_vec));
    proc::clean_up();
}
