//! Recordings that were torn or edited: read or refused, by line. What is read
//! is written as text that reads as the same recording.

use vahti_observers::recording::Recording;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let recording = match Recording::parse(text) {
        Ok(recording) => recording,
        Err(error) => {
            assert!(!error.to_string().chars().any(char::is_control), "{error}");
            return;
        }
    };
    let written = recording.to_string();
    let again = Recording::parse(&written).expect("what was written is read");
    assert_eq!(again.to_string(), written);
}
