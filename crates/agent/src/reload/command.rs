//! `vahti reload`: has the agent that runs read its configuration now.
//!
//! Read from JSON, since the agent that answers may be of another version.

use serde_json::Value;
use vahti_runtime::event::escape_text;

use crate::answer::{members, text};
use crate::cli::ReloadArgs;
use crate::output::{FAILURE, Failed, Outcome, SUCCESS, print};
use crate::{control, socket};

/// Prints what came of it; fails if the configuration was refused.
pub(crate) fn reload(args: &ReloadArgs) -> Outcome {
    let path = socket::known(args.socket.clone())?;
    let answer =
        control::ask(&path, "reload").map_err(|error| Failed::failure(error.to_string()))?;
    if let Some(error) = answer["error"].as_str() {
        return Err(Failed::failure(escape_text(error)));
    }
    let is_refused = answer["result"] == "refused";
    if is_refused && !args.json {
        let told: Vec<_> = members(&answer["problems"]).map(text).collect();
        let stays = format!("generation {} stays in force", answer["generation"]);
        return Err(Failed::failure(format!("{}\n{stays}", told.join("\n"))));
    }
    print(&if args.json { format!("{answer:#}\n") } else { to_text(&answer) })?;
    Ok(if is_refused { FAILURE } else { SUCCESS })
}

/// A line for each change, and one for all.
fn to_text(answer: &Value) -> String {
    let mut out = String::new();
    for change in members(&answer["changes"]) {
        let when = if change["applied"] == true { "applied" } else { "needs a restart" };
        let [path, from, to] = ["path", "from", "to"].map(|key| text(&change[key]));
        out.push_str(&format!("{path}: {from} → {to}, {when}\n"));
    }
    let generation = &answer["generation"];
    out.push_str(&match answer["result"].as_str() {
        Some("changed") => format!("generation {generation} is in force\n"),
        _ => format!("nothing is new; generation {generation} stays in force\n"),
    });
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_change_has_a_line_and_says_whether_it_is_applied() {
        let answer = json!({"result": "changed", "generation": 3, "changes": [
            {"path": "log", "from": "\"info\"", "to": "\"warn\"", "applied": true},
            {"path": "node_name", "from": "not set", "to": "\"a\n\"", "applied": false},
        ]});
        let expected = "log: \"info\" → \"warn\", applied\n\
                        node_name: not set → \"a\\x0a\", needs a restart\n\
                        generation 3 is in force\n";
        assert_eq!(to_text(&answer), expected);
        let nothing = json!({"result": "unchanged", "generation": 3, "changes": []});
        assert_eq!(to_text(&nothing), "nothing is new; generation 3 stays in force\n");
    }
}
