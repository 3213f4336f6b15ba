//! `vahti health`: what the agent that runs says of itself.
//!
//! Read from JSON, since the agent that answers may be of another version.

use serde_json::Value;
use vahti_runtime::event::escape_text;

use crate::answer::{members, text};
use crate::cli::HealthArgs;
use crate::output::{FAILURE, Failed, Outcome, SUCCESS, print};
use crate::{control, socket};

/// Prints how the agent does; fails if it does not watch, or is not alive.
pub(crate) fn health(args: &HealthArgs) -> Outcome {
    let path = socket::known(args.socket.clone())?;
    let answer =
        control::ask(&path, "health").map_err(|error| Failed::failure(error.to_string()))?;
    let text = if args.json { format!("{answer:#}\n") } else { to_text(&answer) };
    print(&text)?;
    let asked = if args.live { "live" } else { "ready" };
    Ok(if answer[asked] == true { SUCCESS } else { FAILURE })
}

/// A line for the agent, and one for each of its parts.
fn to_text(answer: &Value) -> String {
    let word = |ok: &str, not: &'static str, key: &str| {
        if answer[key] == true { ok.to_owned() } else { not.to_owned() }
    };
    let (live, ready) = (word("live", "not live", "live"), word("ready", "not ready", "ready"));
    let mut out = format!("agent {}, {live}, {ready}\n", text(&answer["status"]));
    for observer in members(&answer["observers"]) {
        let status = text(&observer["status"]);
        let mut why = text(&observer["reason"]);
        if observer["ready"] == false {
            why = if why.is_empty() { "not proven".to_owned() } else { why };
        }
        line(&mut out, "observer", &text(&observer["observer"]), &status, &why);
    }
    for emitter in members(&answer["emitters"]) {
        let (state, why) = (text(&emitter["state"]), text(&emitter["why"]));
        line(&mut out, "emitter", &text(&emitter["name"]), &state, &why);
    }
    let configuration = &answer["configuration"];
    if configuration.is_object() {
        let generation = format!("generation {}", configuration["generation"]);
        let waits: Vec<_> = members(&configuration["needs_restart"]).map(text).collect();
        let (state, why) = match configuration["refused"].as_str() {
            Some(why) => ("in force", format!("a new one was refused: {}", escape_text(why))),
            None if waits.is_empty() => ("in force", String::new()),
            None => ("in force", format!("needs a restart: {}", waits.join(", "))),
        };
        line(&mut out, "config", &generation, state, &why);
    }
    for check in ["live", "ready"].iter().flat_map(|kind| members(&answer["checks"][kind])) {
        if let Some(why) = check["why"].as_str() {
            let name = text(&check["name"]);
            out.push_str(&format!("failed: {name}: {}\n", escape_text(why)));
        }
    }
    out
}

fn line(out: &mut String, kind: &str, name: &str, state: &str, why: &str) {
    let line = format!("  {kind:<9}{name:<20} {state:<10} {why}");
    out.push_str(line.trim_end());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_part_has_a_line_and_what_failed_is_named() {
        let answer = json!({
            "status": "degraded", "live": true, "ready": false,
            "observers": [{"observer": "network", "status": "degraded", "reason": "source: x\n",
                           "ready": false}],
            "emitters": [{"name": "stdout", "state": "working"}],
            "checks": {"live": [], "ready": [{"name": "network", "why": "x"}]},
        });
        let expected = "agent degraded, live, not ready\n  \
                        observer network              degraded   source: x\\x0a\n  \
                        emitter  stdout               working\nfailed: network: x\n";
        assert_eq!(to_text(&answer), expected);
        let with = |refused: Value, waits: Value| {
            let configuration =
                json!({"generation": 2, "refused": refused, "needs_restart": waits});
            to_text(&json!({"configuration": configuration}))
        };
        let line = "agent , not live, not ready\n  config   generation 2         in force";
        assert_eq!(with(Value::Null, json!([])), format!("{line}\n"));
        let refused = with(json!("a.yaml:1:2: x\n"), json!(["log"]));
        assert_eq!(refused, format!("{line}   a new one was refused: a.yaml:1:2: x\\x0a\n"));
        let waits = with(Value::Null, json!(["node_name", "http.listen"]));
        assert_eq!(waits, format!("{line}   needs a restart: node_name, http.listen\n"));
        assert_eq!(to_text(&Value::Null), "agent , not live, not ready\n");
    }
}
