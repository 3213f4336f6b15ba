//! `vahti log`: how much the agent that runs tells about itself.
//!
//! Read from JSON, since the agent that answers may be of another version.

use serde_json::{Value, json};
use vahti_runtime::event::escape_text;

use super::{change_level, state};
use crate::answer::text;
use crate::cli::LogArgs;
use crate::config::LogLevel;
use crate::output::{FAILURE, Failed, Outcome, SUCCESS, print};
use crate::{control, socket};

/// What the agent answers: the state of its log, after it was set to a level
/// where one is given.
pub(crate) fn answer(level: Option<&str>) -> Vec<u8> {
    match level.map(str::parse::<LogLevel>) {
        None => {}
        Some(Ok(level)) => change_level(level),
        Some(Err(levels)) => {
            let error = format!("a level must be {levels}");
            return json!({ "error": error }).to_string().into_bytes();
        }
    }
    state().to_string().into_bytes()
}

/// Sets the level if one is given, and shows what is in force.
pub(crate) fn log(args: &LogArgs) -> Outcome {
    let path = socket::known(args.socket.clone())?;
    let request =
        args.level.map_or_else(|| "log".to_owned(), |level| format!("log {}", level.as_str()));
    let answer =
        control::ask(&path, &request).map_err(|error| Failed::failure(error.to_string()))?;
    if let Some(error) = answer["error"].as_str() {
        let error = escape_text(error);
        return Err(Failed::failure(format!("the agent did not do that: {error}")));
    }
    let shown = if args.json { format!("{answer:#}\n") } else { to_text(&answer) };
    print(&shown)?;
    let is_set = args.level.is_none_or(|level| answer["level"] == level.as_str());
    Ok(if is_set { SUCCESS } else { FAILURE })
}

fn to_text(answer: &Value) -> String {
    let held = |reason: &str| answer["held_back"][reason].as_u64().unwrap_or(0);
    let lines = answer["lines"].as_object().into_iter().flatten();
    let lines: u64 = lines.filter_map(|(_, count)| count.as_u64()).sum();
    format!(
        "level {}, format {}\nlines written: {lines}\nheld back: {} that came too often, {} that \
         standard error did not take\n",
        text(&answer["level"]),
        text(&answer["format"]),
        held("rate"),
        held("stderr"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_of_any_version_answers_is_shown() {
        let answer = json!({
            "level": "debug", "format": "json", "lines": {"info": 3, "warn": 2},
            "held_back": {"rate": 7, "stderr": 1},
        });
        let expected = "level debug, format json\nlines written: 5\nheld back: 7 that came too \
                        often, 1 that standard error did not take\n";
        assert_eq!(to_text(&answer), expected);
        assert!(to_text(&Value::Null).starts_with("level , format \nlines written: 0\n"));
    }

    #[test]
    fn a_level_that_there_is_not_is_refused_with_those_that_there_are() {
        let answer: Value = serde_json::from_slice(&answer(Some("loud"))).unwrap();
        let levels = "a level must be off, error, warn, info, debug or trace";
        assert_eq!(answer, json!({ "error": levels }));
    }
}
