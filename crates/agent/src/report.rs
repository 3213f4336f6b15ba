//! How `doctor` shows what can be seen on this node.

use serde::Serialize;
use serde_json::Value;
use vahti_runtime::event::escape_text;

use crate::budget::{Division, by_user, shown};
use crate::config::Config;
use crate::doctor::store::{StoreReport, StoreState};
use crate::output::Failed;
use crate::table::wrap;

/// Whether a signal can be seen. The worse, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// By the best mechanism.
    Works,
    /// By a lesser one; `accuracy` says what that costs.
    Degraded,
    /// Not at all.
    Missing,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            State::Works => "works",
            State::Degraded => "degraded",
            State::Missing => "missing",
        }
    }
}

/// One thing that vahti can see, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SignalReport {
    /// The observer that it belongs to.
    pub(crate) observer: String,
    /// What is seen, such as `connection_refused`.
    pub(crate) signal: String,
    /// Whether it is.
    pub(crate) state: State,
    /// By which mechanism, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mechanism: Option<String>,
    /// Why not, or why not by a better one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
    /// How accurate it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy: Option<String>,
}

/// What `doctor` found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DoctorReport {
    /// The kernel, as it calls itself.
    pub(crate) kernel: String,
    /// Every signal of every observer.
    pub(crate) signals: Vec<SignalReport>,
    /// Who may take how much memory.
    pub(crate) memory: MemoryReport,
    /// What is kept.
    pub(crate) store: StoreReport,
    /// Where the agent that runs sends events; empty if none answers.
    pub(crate) emitters: Vec<EmitterReport>,
}

/// An emitter of the agent that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EmitterReport {
    name: String,
    /// `working`, `failing` or `ended`.
    state: String,
    /// Why it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// The emitters of the agent that runs, as it says; the store has a report of
/// its own.
pub(crate) fn emitters(ledger: Option<&Value>) -> Vec<EmitterReport> {
    let emitters = ledger.and_then(|ledger| ledger["emitters"].as_array()).into_iter().flatten();
    let word = |emitter: &Value, key: &str| emitter[key].as_str().map(str::to_owned);
    let report = |emitter: &Value| {
        let why = word(emitter, "why");
        Some(EmitterReport { name: word(emitter, "name")?, state: word(emitter, "state")?, why })
    };
    emitters.filter_map(report).filter(|emitter| emitter.name != "store").collect()
}

/// How a configuration's memory is divided, and what an agent that runs takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MemoryReport {
    /// Of the configuration that `doctor` was given.
    #[serde(flatten)]
    pub(crate) division: Division,
    /// The same of an agent that runs, and what it has in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<Value>,
}

impl MemoryReport {
    /// Divides a configuration's memory; `ledger` is what an agent that runs
    /// answers, if one does.
    ///
    /// # Errors
    /// The memory is not enough.
    pub(crate) fn of(config: &Config, ledger: Option<&Value>) -> Result<Self, Failed> {
        let division =
            Division::of(config).map_err(|unmet| Failed::usage(unmet.field().to_string()))?;
        let agent = ledger.and_then(|ledger| ledger.get("memory").cloned());
        Ok(MemoryReport { division, agent })
    }

    fn to_text(&self, out: &mut String) {
        let row = |out: &mut String, user: &str, used_for: &str, bytes: u64| {
            let (user, used_for) = (escape_text(user), escape_text(used_for));
            let (user, used_for) = (cut(&user, 24), cut(&used_for, 36));
            out.push_str(&format!("  {user:24}  {used_for:36}{:>12}\n", shown(bytes)));
        };
        out.push_str("\nmemory\n");
        let mut last = "";
        for part in &self.division.parts {
            let user = if part.user == last { "" } else { &*part.user };
            last = &part.user;
            row(out, user, &part.used_for, part.bytes);
        }
        let taken = by_user(&self.division.parts).iter().map(|(_, bytes)| bytes).sum();
        row(out, "all", "at the most", taken);
        row(out, "", "limits.memory", self.division.budget);
        let Some(agent) = &self.agent else { return };
        let number = |value: &Value, key: &str| value[key].as_u64();
        if let Some(budget) = number(agent, "budget_bytes") {
            row(out, "the agent that runs", "limits.memory", budget);
        }
        for (key, what) in [
            ("anonymous_bytes", "has made, without maps in the kernel"),
            ("file_bytes", "has mapped: its code, and rings"),
        ] {
            if let Some(bytes) = number(&agent["resident"], key) {
                row(out, "", what, bytes);
            }
        }
    }
}

fn cut(text: &str, columns: usize) -> String {
    text.chars().take(columns).collect()
}

/// How wide a report is, in columns.
const WIDTH: usize = 80;

impl DoctorReport {
    /// Whether any signal can't be seen, or nothing be kept.
    pub(crate) fn is_anything_missing(&self) -> bool {
        self.store.state == StoreState::Missing
            || self.signals.iter().any(|s| s.state == State::Missing)
    }

    /// As JSON, for programs.
    pub(crate) fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }

    /// As text, for people: at most 80 columns.
    pub(crate) fn to_text(&self) -> String {
        let mut out = format!("kernel {}\n", escape_text(&self.kernel));
        let mut observer = "";
        for signal in &self.signals {
            if signal.observer != observer {
                observer = &signal.observer;
                out.push_str(&format!("\n{}\n", escape_text(observer)));
            }
            wrap(&mut out, &format!("  {:8}  ", signal.state.as_str()), &signal.signal, WIDTH);
            let notes = [
                ("by", &signal.mechanism),
                ("why", &signal.why),
                ("do", &signal.remedy),
                ("accuracy", &signal.accuracy),
            ];
            for (label, note) in notes {
                if let Some(note) = note {
                    wrap(&mut out, &format!("            {label}: "), note, WIDTH);
                }
            }
        }
        self.memory.to_text(&mut out);
        self.store.write(&mut out, WIDTH);
        if !self.emitters.is_empty() {
            out.push_str("\nemitters of the agent that runs\n");
        }
        for emitter in &self.emitters {
            wrap(&mut out, &format!("  {:8}  ", escape_text(&emitter.state)), &emitter.name, WIDTH);
            if let Some(why) = &emitter.why {
                wrap(&mut out, "            why: ", why, WIDTH);
            }
        }
        let count = |state| self.signals.iter().filter(|s| s.state == state).count();
        out.push_str(&format!(
            "\n{} work, {} degraded, {} missing\n",
            count(State::Works),
            count(State::Degraded),
            count(State::Missing),
        ));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::doctor::store;

    #[test]
    fn a_report_fits_eighty_columns_and_smuggles_nothing() {
        let long = "a reason that goes on and on ".repeat(10);
        let report = DoctorReport {
            kernel: "6.18.0\u{1b}[2J".into(),
            signals: vec![
                SignalReport {
                    observer: "network".into(),
                    signal: "connection_refused".into(),
                    state: State::Works,
                    mechanism: Some("BTF raw tracepoint inet_sock_set_state".into()),
                    why: None,
                    remedy: None,
                    accuracy: None,
                },
                SignalReport {
                    observer: "container".into(),
                    signal: "oom_kill".into(),
                    state: State::Missing,
                    mechanism: None,
                    why: Some(long.clone()),
                    remedy: Some(long),
                    accuracy: Some("none\n".into()),
                },
            ],
            memory: MemoryReport {
                division: Division::of(&Config::default()).unwrap(),
                agent: Some(serde_json::json!({
                    "budget_bytes": 64 << 20,
                    "resident": {"anonymous_bytes": 3 << 20, "file_bytes": 9 << 20},
                })),
            },
            store: {
                let mut config = Config::default();
                let aside = "/proc/no\u{1b}/where/that/is/as/long/as/a/folder".into();
                config.store.path = Some(aside);
                store::report(&config, None)
            },
            emitters: emitters(Some(&serde_json::json!({"emitters": [
                {"name": "store", "state": "working"},
                {"name": "audit\u{1b}", "state": "failing", "why": "a reason ".repeat(20)},
            ]}))),
        };
        let text = report.to_text();
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert_eq!(line.trim_end(), line);
        }
        assert!(text.ends_with("\n1 work, 0 degraded, 1 missing\n"), "{text}");
        assert!(report.is_anything_missing());
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["signals"][1]["state"], "missing");
        assert_eq!(json["emitters"][0]["state"], "failing");
    }
}
