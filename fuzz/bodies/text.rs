//! What comes from outside as text: shown without harm, without loss.

use vahti_runtime::clock::{Rfc3339, rfc3339};
use vahti_runtime::event::{escape, escape_text};
use vahti_runtime::ids::{BootId, EventId, SpanId, TraceId};
use vahti_runtime::units::{ByteSize, HumanDuration};

/// What `escape` did, undone.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let (byte, taken) = match (first, tail) {
            (b'\\', [b'\\', ..]) => (b'\\', 1),
            (b'\\', [b'x', high, low, ..]) => {
                let hex = [*high, *low];
                let hex = std::str::from_utf8(&hex).expect("two digits");
                (u8::from_str_radix(hex, 16).expect("two digits"), 3)
            }
            (b'\\', _) => panic!("a backslash stands alone in {text:?}"),
            (byte, _) => (*byte, 0),
        };
        bytes.push(byte);
        rest = &tail[taken..];
    }
    bytes
}

pub(crate) fn run(bytes: &[u8]) {
    let shown = escape(bytes);
    assert!(!shown.chars().any(char::is_control));
    assert_eq!(unescape(&shown), bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert!(!escape_text(text).chars().any(char::is_control));
    std::hint::black_box(BootId::parse(text));
    if let Some(ns) = Rfc3339::parse(text) {
        assert_eq!(rfc3339(ns), text);
    }
    if let Some(id) = EventId::parse(text) {
        assert_eq!(EventId::parse(&id.to_string()), Some(id));
    }
    if let Some(id) = TraceId::parse(text) {
        assert_eq!(TraceId::parse(&id.to_string()), Some(id));
    }
    if let Some(id) = SpanId::parse(text) {
        assert_eq!(SpanId::parse(&id.to_string()), Some(id));
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(duration) = text.parse::<HumanDuration>() {
        assert_eq!(duration.to_string().parse(), Ok(duration));
    }
}
