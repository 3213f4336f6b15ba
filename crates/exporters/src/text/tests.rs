use std::sync::Arc;

use vahti_runtime::event::*;

use super::*;

fn line(event: &Event) -> String {
    let mut out = Vec::new();
    to_text_line(event, false, &mut out);
    String::from_utf8(out).unwrap()
}

fn process(name: &[u8]) -> Option<Process> {
    Some(Process {
        pid: Some(4_242),
        name: Some(Comm::new(name)),
        uid: None,
        parent_pid: None,
        start_ns: None,
    })
}

fn refused() -> Event {
    let end = |address: &str, port| Endpoint {
        address: Some(address.parse().unwrap()),
        port: Some(port),
    };
    Event {
        time_ns: 1_700_000_000_123_999_999,
        process: process(b"curl"),
        error: Some(ErrorInfo {
            code: "ECONNREFUSED".into(),
            message: "nobody listens there".into(),
            cause: None,
        }),
        data: EventData::Network(Network {
            transport: Transport::Tcp,
            network_type: NetworkType::Ipv4,
            local: end("127.0.0.1", 40_000),
            peer: end("127.0.0.1", 9),
        }),
        ..Event::new(&CONNECTION_REFUSED, Severity::Error)
    }
}

#[test]
fn a_refused_connection_reads_as_a_sentence() {
    assert_eq!(
        line(&refused()),
        "2023-11-14T22:13:20.123Z error connection refused: curl[4242] → 127.0.0.1:9, \
         ECONNREFUSED: nobody listens there\n"
    );
}

#[test]
fn a_storm_says_how_often_and_in_what_time() {
    let event = Event {
        count: 20_000,
        first_ns: 1_000,
        last_ns: 900_001_000,
        weight: 4.0,
        process: None,
        container: Some(Arc::new(Container {
            id: "4f1c2ab39d01e5".into(),
            runtime: Some("docker"),
        })),
        ..refused()
    };
    assert!(
        line(&event).ends_with(
            ": somebody → 127.0.0.1:9, ECONNREFUSED: nobody listens there \
             (docker 4f1c2ab39d01) ×20000 in 900.0ms (sampled: stands for 4.0 like it)\n"
        ),
        "{}",
        line(&event)
    );
}

#[test]
fn an_oom_kill_says_whose_memory_and_who_asked() {
    let event = Event {
        process: process(b"stress"),
        data: EventData::OomKill(OomKill {
            scope: OomScope::Container,
            usage_bytes: Some(64 << 20),
            limit_bytes: Some(64 << 20),
            victim_rss_bytes: None,
            score_adj: None,
            trigger: Some(ProcessRef { pid: 7, name: Comm::new(b"nginx") }),
        }),
        ..Event::new(&OOM_KILL, Severity::Fatal)
    };
    assert_eq!(
        line(&event),
        "1970-01-01T00:00:00.000Z fatal oom kill: stress[4242], the container's memory: \
         64.0 MiB of 64.0 MiB, asked by nginx[7]\n"
    );
}

#[test]
fn a_crash_names_its_signal_and_its_sender() {
    let event = Event {
        process: process(b"app"),
        duration_ns: Some(1_500),
        data: EventData::Exit(Exit {
            code: None,
            signal: Some(Signal(11)),
            class: ExitClass::Crash,
            sender: Some(ProcessRef { pid: 1, name: Comm::new(b"sh") }),
        }),
        ..Event::new(&PROCESS_CRASH, Severity::Error)
    };
    assert_eq!(
        line(&event),
        "1970-01-01T00:00:00.000Z error process crash: app[4242], by SIGSEGV, sent by sh[1], \
         after 1µs\n"
    );
}

#[test]
fn an_exit_code_is_told_in_words_once() {
    let event = Event {
        process: process(b"app"),
        error: Some(ErrorInfo {
            code: "EXIT".into(),
            message: "ended with exit code 3".into(),
            cause: None,
        }),
        data: EventData::Exit(Exit {
            code: Some(3),
            signal: None,
            class: ExitClass::Error,
            sender: None,
        }),
        ..Event::new(&CONTAINER_EXIT, Severity::Error)
    };
    assert_eq!(
        line(&event),
        "1970-01-01T00:00:00.000Z error container exit: app[4242], ended with exit code 3\n"
    );
}

#[test]
fn nothing_is_smuggled_in_and_colour_is_only_the_severitys() {
    let evil = "a\u{1b}]0;x\u{7}\n\u{202e}b";
    let event = Event {
        process: process(b"\x1b[31m\n"),
        error: Some(ErrorInfo {
            code: evil.into(),
            message: evil.into(),
            cause: Some(evil.into()),
        }),
        container: Some(Arc::new(Container { id: evil.into(), runtime: None })),
        data: EventData::Custom(Box::new(Custom {
            schema: evil.into(),
            attributes: vec![(
                evil.into(),
                Value::List(vec![Value::Text(evil.into()), Value::Bool(true)]),
            )],
        })),
        ..Event::new(&PROCESS_CRASH, Severity::Warning)
    };
    let plain = line(&event);
    let body = plain.strip_suffix('\n').unwrap();
    assert!(!body.chars().any(char::is_control), "{body:?}");
    assert!(!body.contains('\u{202e}'));

    let mut coloured = Vec::new();
    to_text_line(&event, true, &mut coloured);
    let coloured = String::from_utf8(coloured).unwrap();
    assert_eq!(coloured.replace("\x1b[33mwarning\x1b[0m", "warning"), plain);
}

#[test]
fn a_gap_says_how_long_nobody_watched_and_when() {
    const SECOND: u64 = 1_000_000_000;
    let line_of = |seconds| {
        let from_ns = 1_780_000_000 * SECOND;
        let gap = Gap { from_ns, to_ns: from_ns + seconds * SECOND };
        line(&Event { data: EventData::Gap(gap), ..Event::new(&AGENT_GAP, Severity::Error) })
    };
    assert_eq!(
        line_of(12),
        "1970-01-01T00:00:00.000Z error gap: the agent was not watching for 12 s: it ended \
         uncleanly (2026-05-28T20:26:40.000Z to 2026-05-28T20:26:52.000Z)\n"
    );
    for (seconds, text) in [(0, "0.0 s"), (119, "119 s"), (120, "2 min"), (90_000, "25 h 0 min")] {
        let line = line_of(seconds);
        assert!(line.contains(&format!("not watching for {text}: ")), "{line}");
    }
}
