//! Names from the kernel can be any bytes. What is printed can't.

use std::net::Ipv4Addr;

use serde_json::json;

use crate::agent::{Agent, Start};
use crate::container::Container;
use crate::network::{ClosedPort, name, of};
use crate::role::Role;

/// Names, and how they are printed.
const NAMES: [(&[u8], &str); 6] = [
    (b"\x1b[31mred\x07", r"\x1b[31mred\x07"),
    (b"two\nlines\r\t", r"two\x0alines\x0d\x09"),
    (b"not\xff\xfeutf8", r"not\xff\xfeutf8"),
    ("c1\u{9b}31m".as_bytes(), r"c1\xc2\x9b31m"),
    ("rtl\u{202e}exe".as_bytes(), r"rtl\xe2\x80\xaeexe"),
    (br#""}\{"count"#, r#""}\\{"count"#),
];

const CGROUP: &str = "vahti-test\u{1b}[2J\u{7}\u{9b}";

/// Nothing in it could move a cursor, ring a bell, or reorder what is read.
#[track_caller]
fn assert_harmless(printed: &[u8]) {
    let text = std::str::from_utf8(printed).unwrap();
    for c in text.chars() {
        let is_hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(c == '\n' || !(c.is_control() || is_hidden), "{c:?} in {text:?}");
    }
}

#[test]
fn names_of_processes_and_cgroups_smuggle_nothing_into_what_is_printed() {
    let Some(json) = Agent::start() else { return };
    let as_text = Start { text: true, ..Start::default() };
    let Some(text) = Agent::start_with(&as_text) else { return };
    let Some(cgroup) = Container::named(CGROUP) else { return };
    let port = ClosedPort::on(Ipv4Addr::LOCALHOST.into());
    for (bytes, shown) in NAMES {
        let client = json!({"name": name(bytes), "peers": [port.address], "count": 1,
                            "at_once": 1, "how": "block"});
        let client = Role::start("connect", &client);
        let pid = client.pid();
        client.outcomes();
        json.tells(1, |event| of(pid)(event) && event["process"]["name"] == shown);
        let ended = json!({"name": name(bytes), "how": "fault", "cgroup": cgroup.folder()});
        let mut ended = Role::start("end", &ended);
        let pid = ended.tells()["pid"].as_u64().unwrap() as u32;
        ended.tells();
        json.tells(1, |event| {
            of(pid)(event)
                && event["process"]["name"] == shown
                && event["cgroup"]["path"] == r"/vahti-test\x1b[2J\x07\xc2\x9b"
        });
    }
    let told = json.ends();
    assert_harmless(&told.raw);
    // Its lines are not counted here, so the ledger stands in for `ends`.
    text.is_quiet();
    let told = text.stops();
    assert_harmless(&told.raw);
    let printed = String::from_utf8(told.raw).unwrap();
    for (_, shown) in NAMES {
        assert!(printed.matches(shown).count() >= 2, "{shown:?} in {printed}");
    }
}
