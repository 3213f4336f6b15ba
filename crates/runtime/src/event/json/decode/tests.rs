use proptest::prelude::*;

use super::super::tests::{any_event, every_kind_of_data, full, line};
use super::*;
use crate::event::*;

/// What built-in observers made of real records: a line of every kind.
const GOLDEN: &str = include_str!("golden.jsonl");

fn decoded(line: &str) -> Result<Event, DecodeError> {
    decode(line.as_bytes(), &Names::default())
}

fn error_of(line: &str) -> String {
    decoded(line).map(|event| format!("{event:?}")).unwrap_err().to_string()
}

#[test]
fn a_line_of_every_built_in_kind_comes_back_as_it_was() {
    let mut kinds = Vec::new();
    for golden in GOLDEN.lines() {
        let event = from_json_line(golden.as_bytes()).unwrap();
        assert_eq!(line(&event), format!("{golden}\n"));
        assert!(event.size_bytes() > size_of::<Event>() || event.kind == &AGENT_GAP);
        assert_eq!(event.count, 1);
        kinds.push(event.kind.row().expect("a row of the table"));
    }
    assert_eq!(kinds, (0..EventKind::ALL.len()).collect::<Vec<_>>());
}

#[test]
fn an_event_with_every_key_is_the_event_that_was_written() {
    for data in every_kind_of_data() {
        let mut event = full(data);
        // What the line does not carry.
        event.duration_ns = Some(1_000);
        event.links[0].age_ns = 2_000;
        assert_eq!(decoded(&line(&event)).unwrap(), event);
    }
}

#[test]
fn the_same_names_are_kept_once() {
    let (first, second) = GOLDEN.split_once('\n').unwrap();
    let second = second.lines().next().unwrap();
    let names = Names::default();
    let [a, b] = [first, second].map(|line| decode(line.as_bytes(), &names).unwrap());
    assert!(std::ptr::eq(a.origin, b.origin));
    assert!(std::ptr::eq(a.origin, Origin::shared("network", "node-under-test")));
    let custom = first.replace("connection_refused", "else");
    let [a, b] = [(), ()].map(|()| decode(custom.as_bytes(), &names).unwrap());
    assert!(std::ptr::eq(a.kind, b.kind));
    assert_eq!((a.kind.row(), a.kind.subtype()), (None, "else"));
    assert_eq!(a.kind.priority(), Priority::Normal);
}

#[test]
fn keys_of_a_newer_version_are_left_out() {
    let golden = GOLDEN.lines().next().unwrap();
    let newer = golden
        .replace(r#""schema":"vahti.event/1","#, r#""schema":"vahti.event/1.3","pod":{"a":[{}]},"#)
        .replace(r#"{"pid":"#, r#"{"tid":7,"pid":"#);
    assert_ne!(newer, golden);
    assert_eq!(decoded(&newer), decoded(golden));
}

#[test]
fn attributes_come_back_with_the_types_that_the_line_tells() {
    let attributes: Vec<(_, Value)> = vec![
        ("int".into(), Value::Int(-5)),
        ("large".into(), Value::Text("9007199254740992".into())),
        ("half".into(), Value::Double(0.5)),
        ("whole".into(), Value::Double(4.0)),
        ("low".into(), Value::Text("-Infinity".into())),
        ("list".into(), Value::List(vec![Value::Bool(true), Value::List(vec![])])),
        ("k\u{1b}\"\\".into(), Value::Text("two\nlines \u{e0041}".into())),
    ];
    let custom = Custom { schema: "urn:example:1".into(), attributes };
    let data = EventData::Custom(Box::new(custom));
    assert_eq!(decoded(&line(&full(data.clone()))).unwrap().data, data);
}

/// Which of the lines below is changed.
const CONNECTION: usize = 0;
const OOM: usize = 1;
const FULL: usize = 2;
const CUSTOM: usize = 3;

/// A line, what in it is replaced, by what, and what is said of it then.
const WRONG: &[(usize, &str, &str, &str)] = &[
    (CONNECTION, r#""id":"01M81PGYJKYNSBTJZCK19CSWRX","#, "", "line: missing field `id`"),
    (
        CONNECTION,
        r#""id":"0"#,
        r#""id":"8"#,
        "id: invalid value: string \"81M81PGYJKYNSBTJZCK19CSWRX\", expected a ULID",
    ),
    (
        CONNECTION,
        r#""count":1"#,
        r#""count":-1"#,
        "count: invalid value: integer `-1`, expected u64",
    ),
    (CONNECTION, r#""count":1"#, r#""count":1,"count":2"#, "count: duplicate field `count`"),
    (
        CONNECTION,
        "2026-11-22T13:18:27.8",
        "2026-11-31T13:18:27.8",
        "process.start_time: invalid value: string \"2026-11-31T13:18:27.806558826Z\", expected RFC 3339 in UTC with nine decimals, from 1970 to 2554",
    ),
    (
        CONNECTION,
        r#""name":"shop""#,
        r#""name":"sh\u001bop, and much longer""#,
        "process.name: invalid value: string \"sh\\u{1b}op, and much longer\", expected an escaped name of at most 15 bytes",
    ),
    (
        CONNECTION,
        "error\",\"outcome",
        "bad\",\"outcome",
        "severity: invalid value: string \"bad\", expected one of debug, info, warning, error, fatal",
    ),
    (
        CONNECTION,
        "failure",
        "\u{202e}",
        "outcome: invalid value: string \"\\u{202e}\", expected one of success, failure, timeout, unknown",
    ),
    (
        CONNECTION,
        "127.0.0.1",
        "localhost",
        "network.local.address: invalid value: string \"localhost\", expected an IP address",
    ),
    (
        CONNECTION,
        r#""port":59280"#,
        r#""port":65536"#,
        "network.local.port: invalid value: integer `65536`, expected u16",
    ),
    (
        CONNECTION,
        "87352f",
        "87352F",
        "trace_id: invalid value: string \"87352F1d13fc3f502c474a08243bfafb\", expected 32 hexadecimal digits",
    ),
    (
        CONNECTION,
        "f31d7404a198f561",
        "0000000000000000",
        "span_id: invalid value: string \"0000000000000000\", expected 16 hexadecimal digits, not all of them 0",
    ),
    (
        CONNECTION,
        ":6305",
        ":\"+6305\"",
        "cgroup.id: invalid value: string \"+6305\", expected a number from 0 to 2^64 - 1, also as text",
    ),
    (
        CONNECTION,
        "/shop.service",
        r"/\\q",
        "cgroup.path: invalid value: string \"/system.slice/\\\\q\", expected escaped bytes",
    ),
    (
        CONNECTION,
        r#""duration_us":91"#,
        r#""duration_us":18446744073709552"#,
        "duration_us: more than 584 years",
    ),
    (
        CONNECTION,
        r#""count""#,
        r#""exit":{"class":"oom"},"count""#,
        "exit: says something else than another part of the event",
    ),
    (CONNECTION, r#""weight":1.0"#, r#""weight":1e999"#, "weight: number out of range"),
    (
        CONNECTION,
        r#""process":{"#,
        r#""process":["#,
        "process.0: invalid type: string \"pid\", expected u32",
    ),
    (CONNECTION, "event/1", "event/2", "schema: vahti.event/2 cannot be read; vahti.event/1 can"),
    (
        CONNECTION,
        "vahti.event/1",
        "\u{1b}",
        "schema: control character (\\u0000-\\u001F) found while parsing a string",
    ),
    (
        OOM,
        r#""trigger_name":"hungry","#,
        "",
        "oom.trigger_pid: a process's id without its name, or the reverse",
    ),
    (
        OOM,
        r#""id":"4f1c"#,
        r#""id":"\\xff"#,
        "container.id: invalid value: string \"\\\\xff2d3e4f1c2d3e4f1c2d3e4f1c2d3e4f1c2d3e4f1c2d3e4f1c2d3e4f1c2d3e\", expected escaped UTF-8",
    ),
    (FULL, r#""age_us":2"#, r#""age_us":18446744073709552"#, "links.0.age_us: more than 584 years"),
    (FULL, r#""rule":"same_peer","#, "", "links.0: missing field `rule`"),
    (
        FULL,
        r#""threshold":"c""#,
        r#""threshold":"+c""#,
        "sampling.threshold: invalid value: string \"+c\", expected up to 14 hexadecimal digits",
    ),
    (
        CUSTOM,
        ":42}",
        ":{}}",
        "custom.attributes.answer: invalid type: map, expected true, false, a number, text or a list of them",
    ),
];

#[test]
fn every_error_says_what_is_wrong_and_at_which_key() {
    let golden = |n| GOLDEN.lines().nth(n).unwrap().to_owned();
    let custom = every_kind_of_data().pop().unwrap();
    let lines = [golden(0), golden(5), line(&full(EventData::None)), line(&full(custom))];
    for (which, from, to, error) in WRONG {
        let changed = lines[*which].replacen(from, to, 1);
        assert_ne!(changed, lines[*which], "{from}");
        let said = error_of(&changed);
        let what = said.rsplit_once(" (byte ").map_or(&*said, |(what, _)| what);
        assert_eq!(what, *error);
    }
}

#[test]
fn what_is_no_line_at_all_is_refused() {
    assert_eq!(error_of(""), "line: EOF while parsing a value (byte 0)");
    assert_eq!(error_of("{}{}"), "line: missing field `schema` (byte 2)");
    assert_eq!(error_of("[]"), "line: invalid length 0, expected an event (byte 2)");
    let golden = GOLDEN.lines().next().unwrap();
    for (end, error) in [
        (57, "id: EOF while parsing a string (byte 57)"),
        (60, "line: EOF while parsing a value (byte 60)"),
        (515, "process.pid: EOF while parsing a value (byte 515)"),
        (golden.len() - 1, "weight: EOF while parsing an object (byte 833)"),
    ] {
        assert_eq!(error_of(&golden[..end]), error, "{}", &golden[..end]);
    }
    assert_eq!(error_of("{}\n{}"), "a second line begins at byte 3");
    let not_text = decode(b"{\"\xff\"}", &Names::default()).unwrap_err();
    assert_eq!(not_text.to_string(), "byte 2 is not UTF-8");
    assert_eq!(not_text, DecodeError::NotUtf8 { at: 2 });
    let long = " ".repeat(MAX_LINE_BYTES + 1);
    assert_eq!(error_of(&long), "a line of 1048577 bytes; at most 1048576 are read");
}

#[test]
fn an_error_repeats_only_the_beginning_of_what_a_file_says() {
    let golden = GOLDEN.lines().next().unwrap();
    let endless = "\u{9b}y".repeat(10_000);
    for from in ["vahti.event/1", "01M81PGYJKYNSBTJZCK19CSWRX"] {
        let error = error_of(&golden.replacen(from, &endless, 1));
        assert!(error.len() < 1_000, "{error}");
        assert!(!error.chars().any(char::is_control), "{error}");
    }
}

#[test]
fn neither_attributes_nor_lists_grow_without_bound() {
    let custom = line(&full(every_kind_of_data().pop().unwrap()));
    let many: Vec<String> = (0..4_097).map(|i| format!("\"k{i}\":{i}")).collect();
    let error = error_of(&custom.replace("\"answer\":42", &many.join(",")));
    assert!(error.starts_with("custom.attributes.k4096: more than 4096 attributes"), "{error}");
    let deep = format!(":{}{}}}", "[".repeat(200), "]".repeat(200));
    let error = error_of(&custom.replace(":42}", &deep));
    assert!(error.contains("recursion limit exceeded"), "{error}");
    let deep = format!(":{}{}}}", "[".repeat(120), "]".repeat(120));
    assert!(decoded(&custom.replace(":42}", &deep)).is_ok());
    // A key that is left out is not counted, however deep it goes.
    let deep = "[".repeat(100_000);
    let error = error_of(&custom.replace("\"count\"", &format!("\"new\":{deep},\"count\"")));
    assert!(error.starts_with("new.0.0.0.0.0: "), "{error}");
}

#[test]
fn lines_bring_only_so_many_names_and_those_that_are_known_go_on() {
    let names = Names::default();
    let golden = GOLDEN.lines().nth(3).unwrap();
    let read = |line: &str| decode(line.as_bytes(), &names);
    for (from, key) in [
        ("connection_reset", "name"),
        ("node-under-test", "source"),
        ("owner_is_listener", "unresolved.reason"),
    ] {
        let with = |n: usize| golden.replace(from, &format!("decode-test-{n}"));
        let known = read(golden).unwrap();
        let more = if from == "connection_reset" { names::LIMIT } else { names::LIMIT - 1 };
        (0..more).for_each(|n| assert!(read(&with(n)).is_ok(), "{key} {n}"));
        let error = read(&with(more)).unwrap_err();
        assert_eq!(error, DecodeError::TooManyNames { key });
        assert_eq!(
            error.to_string(),
            format!("{key}: lines have brought 1024 different ones already, or 128 KiB of them")
        );
        assert!(read(&with(0)).is_ok());
        assert_eq!(read(golden), Ok(known));
        let error = read(&golden.replace(from, &"n".repeat(2_000))).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{key}: 20")), "{error}");
        assert!(error.ends_with(" bytes of names; at most 1024 are kept"), "{error}");
    }
}

#[test]
fn long_names_use_up_the_bytes_before_they_are_many() {
    let names = Names::default();
    let golden = GOLDEN.lines().nth(3).unwrap();
    let with = |n: usize| golden.replace("owner_is_listener", &format!("{n:x>1000}"));
    let fit = (0..names::LIMIT).take_while(|n| decode(with(*n).as_bytes(), &names).is_ok());
    assert_eq!(fit.count(), names::ALL_BYTES / 1_000);
    assert!(decode(with(0).as_bytes(), &names).is_ok(), "what is known goes on");
}

#[test]
fn any_event_is_written_again_as_the_same_line() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1_000));
    let result = runner.run(&any_event(), |event| {
        let written = line(&event);
        let again =
            decoded(&written).map_err(|e| TestCaseError::fail(format!("{e}: {written}")))?;
        prop_assert_eq!(line(&again), written);
        prop_assert_eq!(again.kind.priority(), event.kind.priority());
        prop_assert_eq!((again.count, again.first_ns), (event.count, event.first_ns));
        prop_assert!(again.size_bytes() >= size_of::<Event>());
        Ok(())
    });
    result.unwrap();
}

/// What may befall a line in a file.
#[derive(Debug, Clone)]
enum Harm {
    Cut(usize),
    Flip(usize, u8),
    Insert(usize, u8),
    /// The rest of another line, from there on.
    Splice(usize, usize, usize),
}

fn any_harm() -> impl Strategy<Value = Harm> {
    let marks = prop::sample::select(br#"{}[]",:\0-9.eutrfn "#.to_vec());
    prop_oneof![
        any::<usize>().prop_map(Harm::Cut),
        (any::<usize>(), 0_u8..8).prop_map(|(at, bit)| Harm::Flip(at, 1 << bit)),
        (any::<usize>(), prop_oneof![marks, any::<u8>()]).prop_map(|(at, b)| Harm::Insert(at, b)),
        any::<(usize, usize, usize)>().prop_map(|(at, other, from)| Harm::Splice(at, other, from)),
    ]
}

fn harmed(lines: &[String], line: usize, harms: &[Harm]) -> Vec<u8> {
    let mut bytes = lines[line % lines.len()].clone().into_bytes();
    for harm in harms {
        let len = bytes.len() + 1;
        match *harm {
            Harm::Cut(at) => bytes.truncate(at % len),
            Harm::Flip(at, bits) => {
                let len = bytes.len().max(1);
                bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte ^= bits);
            }
            Harm::Insert(at, byte) => bytes.insert(at % len, byte),
            Harm::Splice(at, other, from) => {
                let other = lines[other % lines.len()].as_bytes();
                bytes.truncate(at % len);
                bytes.extend_from_slice(&other[from % (other.len() + 1)..]);
            }
        }
    }
    bytes
}

#[test]
fn a_line_that_was_harmed_is_an_event_or_an_error_but_never_a_panic() {
    let mut lines: Vec<String> = GOLDEN.lines().map(str::to_owned).collect();
    lines.extend(every_kind_of_data().into_iter().map(|data| line(&full(data))));
    // Names are kept for good; one table for all, so that it can fill up, too.
    let names = Names::default();
    let harms = (any::<usize>(), prop::collection::vec(any_harm(), 1..4));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(20_000));
    let result = runner.run(&harms, |(which, harms)| {
        match decode(&harmed(&lines, which, &harms), &names) {
            Ok(event) => {
                let once = line(&event);
                let again = decode(once.as_bytes(), &names).expect("what it wrote itself");
                prop_assert_eq!(line(&again), once);
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.len() < 2_000 && !text.chars().any(char::is_control), "{}", text);
            }
        }
        Ok(())
    });
    result.unwrap();
}
