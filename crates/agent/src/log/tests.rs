use std::cell::{Cell, RefCell};

use serde_json::Value;
use tracing::subscriber::with_default;

use super::limit::{BURST, REFILL};
use super::line::MAX_LINE;
use super::*;

thread_local! {
    static WRITTEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static IS_FULL: Cell<bool> = const { Cell::new(false) };
    static LATER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A standard error that may not take anything.
fn write(line: &[u8]) -> bool {
    if IS_FULL.get() {
        return false;
    }
    WRITTEN.with_borrow_mut(|all| all.push(String::from_utf8(line.to_vec()).unwrap()));
    true
}

/// A clock that goes only when it is told to.
fn now() -> Instant {
    static BEGUN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *BEGUN + LATER.get()
}

fn pass(time: Duration) {
    LATER.set(LATER.get() + time);
}

fn log_at(level: LogLevel, format: LogFormat) -> &'static Log {
    let log = Log::new(write, now);
    log.level.store(level as u8, Ordering::Relaxed);
    log.is_json.store(format == LogFormat::Json, Ordering::Relaxed);
    Box::leak(Box::new(log))
}

/// What is written while this is done, line by line.
fn told(log: &'static Log, f: impl FnOnce()) -> Vec<String> {
    with_default(log, f);
    WRITTEN.take()
}

fn told_as(format: LogFormat, f: impl FnOnce()) -> Vec<String> {
    told(log_at(LogLevel::Trace, format), f)
}

/// Without the moment, which is checked.
fn said(line: &str) -> &str {
    let (moment, said) = line.split_at(27);
    assert!(moment.starts_with("20") && moment.ends_with('Z'), "{line}");
    assert!(said.ends_with('\n'), "{line}");
    said.trim_end_matches('\n')
}

fn parse(line: &str) -> Value {
    assert!(line.len() <= MAX_LINE, "{}", line.len());
    assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Tells the same from one place.
fn fails(emitter: &str, number: u64) {
    tracing::warn!(%emitter, number, "it fails");
}

#[test]
fn a_line_of_text_has_moment_level_message_and_fields() {
    let lines = told_as(LogFormat::Text, || {
        tracing::info!(number = 7, text = "a b", shown = %"a b", yes = true, "said {}", "so");
        tracing::error!(r#type = ?Some(1.5));
        tracing::warn!("a\nb\u{1b}[0m \\x1b");
    });
    let said: Vec<&str> = lines.iter().map(|line| said(line)).collect();
    assert_eq!(said[0], "  INFO said so number=7 text=\"a b\" shown=a b yes=true");
    assert_eq!(said[1..], [" ERROR type=Some(1.5)", r"  WARN a\x0ab\x1b[0m \x1b"]);
}

#[test]
fn a_line_of_json_is_an_object_whose_members_are_the_fields() {
    let lines = told_as(LogFormat::Json, || {
        tracing::info!(number = 7, big = u64::MAX, text = "a \"b\"", yes = true, "said {}", "so");
        tracing::trace!(message = "as a field", part = 0.5, nan = f64::NAN, below = -3);
    });
    let first = parse(&lines[0]);
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    let expected = ["timestamp", "level", "target", "message", "number", "big", "text", "yes"];
    assert_eq!(keys, expected);
    assert_eq!(first["level"], "info");
    assert_eq!(first["target"], module_path!());
    assert_eq!(first["message"], "said so");
    assert_eq!((&first["number"], &first["yes"]), (&7.into(), &true.into()));
    assert_eq!((&first["big"], &first["text"]), (&u64::MAX.to_string().into(), &"a \"b\"".into()));
    let moment = first["timestamp"].as_str().unwrap();
    let whole = format!("{}000Z", moment.trim_end_matches('Z'));
    assert!(vahti_runtime::clock::Rfc3339::parse(&whole).is_some(), "{moment}");
    let second = parse(&lines[1]);
    assert_eq!(second["message"], "as a field");
    assert_eq!((&second["part"], &second["nan"]), (&0.5.into(), &"NaN".into()));
    assert_eq!((&second["below"], &second["level"]), (&(-3).into(), &"trace".into()));
}

#[test]
fn what_names_and_messages_hold_harms_neither_form() {
    let hostile = [
        "\u{1b}[2J\u{7}\0\r\n\t\"\\ }{],:",
        "\u{202e}gpj.exe\u{200b}\u{feff}\u{9b}31m\u{7f}",
        "\u{e0041}\u{1f980}\u{10ffff}ä漢",
        r"caf\xe9 \u0000 \\",
    ];
    for name in hostile {
        let tell = || tracing::error!(process = %name, quoted = name, shown = ?name, "of {name}");
        let lines = told_as(LogFormat::Json, tell);
        let line = parse(&lines[0]);
        assert_eq!(line["process"], name);
        assert_eq!(line["quoted"], name);
        assert_eq!(line["shown"], format!("{name:?}"));
        assert_eq!(line["message"], format!("of {name}"));
        let text = told_as(LogFormat::Text, tell).remove(0);
        for line in [&lines[0], &text] {
            let harmful = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{feff}".contains(c);
            assert!(!line.contains(harmful) && line.lines().count() == 1, "{line:?}");
        }
    }
}

#[test]
fn names_that_stand_twice_or_are_ours_are_told_apart() {
    let lines = told_as(LogFormat::Json, || {
        tracing::info!(level = 1, held_back = 2, message = %"a", "dots.and \"quotes\"" = 3, "b");
    });
    let line = parse(&lines[0]);
    assert_eq!(line["level"], "info");
    assert_eq!(line["dots.and \"quotes\""], 3);
    let members = line.as_object().unwrap();
    assert!(members.values().any(|value| *value == 1) && members.values().any(|v| *v == 2));
    assert_eq!(members.len(), lines[0].matches("\":").count(), "{}", lines[0]);
}

#[test]
fn what_does_not_fit_into_a_line_is_cut_and_says_so() {
    for unit in ["x", "\u{0}", "\"", "漢", "\u{1f980}"] {
        let long = unit.repeat(10_000);
        for level in [LogFormat::Json, LogFormat::Text] {
            let lines = told_as(level, || {
                tracing::error!(a = %long, b = long, c = ?long, d = long, e = 1, f = 2, "m {long}");
            });
            assert!(lines[0].len() <= MAX_LINE && lines[0].ends_with('\n'), "{}", lines[0].len());
            assert!(lines[0].contains('…'), "{}", lines[0]);
        }
        let line = told_as(LogFormat::Json, || {
            tracing::error!(a = %long, b = long, c = ?long, d = long, e = 1, f = 2, "m {long}");
        });
        let line = parse(&line[0]);
        assert!(line["message"].as_str().unwrap().ends_with('…'), "{line}");
        let fields = line.as_object().unwrap().len() as u64 - 5;
        assert_eq!(fields + line["left_out"].as_u64().unwrap(), 6, "{line}");
    }
}

#[test]
fn a_call_site_has_some_lines_at_once_and_then_one_now_and_again() {
    let log = log_at(LogLevel::Info, LogFormat::Json);
    let lines = told(log, || (0..1_000).for_each(|number| fails("a", number)));
    assert_eq!(lines.len(), BURST as usize);
    assert!(lines.iter().all(|line| parse(line).get("held_back").is_none()));
    pass(REFILL);
    let lines = told(log, || (0..1_000).for_each(|number| fails("a", number)));
    assert_eq!(lines.len(), 1);
    assert_eq!(parse(&lines[0])["held_back"], 1_000 - u64::from(BURST));
    // Once it was quiet for as long as all of them take, it has them all.
    pass(REFILL * BURST);
    let lines = told(log, || (0..1_000).for_each(|number| fails("a", number)));
    assert_eq!(lines.len(), BURST as usize);
    assert_eq!(parse(&lines[0])["held_back"], 999);
    assert_eq!(log.rate.load(Ordering::Relaxed), 990 + 999 + 990);
}

#[test]
fn a_storm_of_one_emitter_does_not_hide_the_lines_of_another() {
    let log = log_at(LogLevel::Info, LogFormat::Text);
    let lines = told(log, || {
        (0..1_000).for_each(|number| fails("a", number));
        fails("b", 1);
        tracing::warn!(emitter = %"a", "another place");
    });
    assert_eq!(lines.len(), BURST as usize + 2);
    assert_eq!(said(&lines[10]), "  WARN it fails emitter=b number=1");
    pass(REFILL);
    let lines = told(log, || ["a", "b"].into_iter().for_each(|name| fails(name, 2)));
    let said: Vec<&str> = lines.iter().map(|line| said(line)).collect();
    let first = "  WARN it fails emitter=a number=2 (990 like this were held back)";
    assert_eq!(said, [first, "  WARN it fails emitter=b number=2"]);
}

#[test]
fn what_a_quiet_place_held_back_is_told_with_what_others_say() {
    let log = log_at(LogLevel::Info, LogFormat::Json);
    told(log, || (0..17).for_each(|number| fails("a", number)));
    let lines = told(log, || tracing::info!("something else"));
    assert_eq!(lines.len(), 1, "it may go on");
    pass(REFILL);
    let lines = told(log, || tracing::info!("something else"));
    assert_eq!(lines.len(), 2);
    let summary = parse(&lines[1]);
    assert_eq!(summary["message"], "held back: it fails emitter=a number=10");
    assert_eq!((&summary["held_back"], &summary["level"]), (&7.into(), &"warn".into()));
    pass(REFILL);
    assert_eq!(told(log, || tracing::info!("something else")).len(), 1, "told once");
}

/// How many records a line tells of that were not written.
fn not_there(line: &str, format: LogFormat) -> u64 {
    if format == LogFormat::Json {
        let line = parse(line);
        let count = |key: &str| line.get(key).map_or(0, |count| count.as_u64().unwrap());
        return count("held_back") + count("not_written");
    }
    let counts = line.match_indices('(').map(|(at, _)| {
        let number: String = line[at + 1..].chars().take_while(char::is_ascii_digit).collect();
        number.parse().unwrap_or(0)
    });
    counts.sum()
}

#[test]
fn every_record_is_written_or_told_to_be_missing_whatever_happens() {
    for format in [LogFormat::Text, LogFormat::Json] {
        let log = log_at(LogLevel::Trace, format);
        let mut made = 0;
        let mut lines = Vec::new();
        for round in 0..200_u64 {
            IS_FULL.set(round % 7 == 3);
            lines.extend(told(log, || {
                for number in 0..round % 41 {
                    fails(["a", "b", "c"][number as usize % 3], number);
                    tracing::trace!(number, "detail");
                    made += 2;
                }
            }));
            pass(Duration::from_millis(round * 37 % 1_700));
        }
        IS_FULL.set(false);
        lines.extend(told(log, || {
            log.tell_held(None);
            tracing::info!("the last");
            made += 1;
        }));
        let records = lines.iter().filter(|line| !line.contains("held back: ")).count() as u64;
        let missing: u64 = lines.iter().map(|line| not_there(line, format)).sum();
        assert!(records > 1_000 && missing > 1_000, "{format:?}: {records} and {missing}");
        assert_eq!(records + missing, made, "{format:?}");
        let kept = log.rate.load(Ordering::Relaxed) + log.stderr.load(Ordering::Relaxed);
        assert_eq!(missing, kept, "{format:?}");
        let counted: u64 = log.lines.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        assert_eq!(counted, lines.len() as u64, "{format:?}");
    }
}

#[test]
fn many_threads_at_once_lose_no_count() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static MISSING: AtomicU64 = AtomicU64::new(0);
    fn count(line: &[u8]) -> bool {
        let line = std::str::from_utf8(line).unwrap();
        if line.len().is_multiple_of(3) {
            return false;
        }
        COUNT.fetch_add(u64::from(!line.contains("held back: ")), Ordering::Relaxed);
        MISSING.fetch_add(not_there(line, LogFormat::Json), Ordering::Relaxed);
        true
    }
    let log: &'static Log = Box::leak(Box::new(Log::new(count, Instant::now)));
    log.is_json.store(true, Ordering::Relaxed);
    let storm = |name: &'static str| {
        move || with_default(log, || (0..5_000).for_each(|number| fails(name, number)))
    };
    let threads: Vec<_> = ["a", "b", "a", "cc"].map(|name| std::thread::spawn(storm(name))).into();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    log.limit.lift();
    log.tell_held(None);
    with_default(log, || fails("the last", 1));
    let untold = log.untold.load(Ordering::Relaxed) + log.limit.held();
    let known = COUNT.load(Ordering::Relaxed) + MISSING.load(Ordering::Relaxed);
    assert_eq!(known + untold, 20_001);
}

#[test]
fn nothing_is_kept_for_more_subjects_than_there_may_be() {
    let log = log_at(LogLevel::Info, LogFormat::Text);
    let lines = told(log, || (0..5_000).for_each(|i| fails(&format!("e{i}"), 0)));
    assert!(log.limit.len() <= limit::MAX_SUBJECTS + 8, "{}", log.limit.len());
    let expected = limit::MAX_SUBJECTS + BURST as usize;
    assert!(lines.len().abs_diff(expected) <= 1, "{}", lines.len());
    log.tell_held(None);
    let missing: u64 = WRITTEN.take().iter().map(|line| not_there(line, LogFormat::Text)).sum();
    assert_eq!(lines.len() as u64 + missing, 5_000);
}

#[test]
fn a_level_can_be_changed_at_any_time_and_a_place_that_is_not_heard_makes_no_text() {
    let log = log_at(LogLevel::Warn, LogFormat::Text);
    let shown = Cell::new(0);
    struct Shown<'a>(&'a Cell<u32>);
    impl std::fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.set(self.0.get() + 1);
            f.write_str("shown")
        }
    }
    let lines = told(log, || {
        for (level, heard) in [
            (LogLevel::Warn, 0),
            (LogLevel::Debug, 1),
            (LogLevel::Trace, 2),
            (LogLevel::Info, 2),
            (LogLevel::Off, 2),
            (LogLevel::Debug, 3),
        ] {
            log.level.store(level as u8, Ordering::Relaxed);
            tracing_core::callsite::rebuild_interest_cache();
            tracing::debug!("{}", Shown(&shown));
            assert_eq!(shown.get(), heard, "{level:?}");
        }
    });
    assert_eq!(lines.len(), 3);
}

#[test]
fn libraries_are_heard_only_when_something_is_not_as_it_should_be() {
    for (level, expected) in [(LogLevel::Trace, 2), (LogLevel::Error, 1), (LogLevel::Off, 0)] {
        let lines = told(log_at(level, LogFormat::Text), || {
            tracing::info!(target: "h2::proto", "details of others");
            tracing::warn!(target: "hyper", "trouble of others");
            tracing::error!(target: "tonic", "failure of others");
            let _span = tracing::error_span!("a span").entered();
        });
        assert_eq!(lines.len(), expected, "{level:?}");
    }
}

#[test]
fn what_is_told_at_the_end_is_told_whole() {
    let log = log_at(LogLevel::Info, LogFormat::Text);
    let lines = told(log, || {
        (0..100).for_each(|number| fails("a", number));
        log.tell_held(None);
        log.limit.lift();
        (0..100).for_each(|number| fails("a", number));
    });
    assert_eq!(lines.len(), BURST as usize + 1 + 100);
}
