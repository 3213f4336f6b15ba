//! The one table of event kinds: name, type, subtype and priority of all.
//!
//! Everything that asks "what is this event called" or "how important is it"
//! reads it from here: the sampler's rules, the lanes' priorities, the JSON
//! keys `name`, `type`, `subtype` and `priority`, and the documentation.

use std::fmt;

/// Which of a lane's two queues an event waits in.
///
/// Fixed per subtype. Whatever its drop policy, a lane gives up normal events
/// before critical ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Everything that is not critical; a refused connection is normal.
    Normal,
    /// OOM kills, failed container exits, crashes, I/O errors, rollout and
    /// node failures, gaps.
    Critical,
}

impl Priority {
    /// Both, in the order in which they are shown.
    pub const ALL: [Priority; 2] = [Priority::Critical, Priority::Normal];

    /// `"critical"` or `"normal"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Normal => "normal",
            Priority::Critical => "critical",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an event is: a row of the table.
///
/// Events point to their row (`&'static EventKind`), so comparing kinds is
/// comparing two words and a name is never copied. Observers outside this
/// project declare rows of their own:
///
/// ```
/// use vahti_runtime::event::{EventKind, Priority};
///
/// static GREETING: EventKind =
///     EventKind::custom("example.hello.greeting", "hello", "greeting", Priority::Normal);
/// assert_eq!(GREETING.subtype(), "greeting");
/// ```
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct EventKind {
    name: &'static str,
    event_type: &'static str,
    subtype: &'static str,
    priority: Priority,
    /// Row in [`EventKind::ALL`]; `u16::MAX` for kinds declared elsewhere.
    row: u16,
}

const CUSTOM_ROW: u16 = u16::MAX;

impl EventKind {
    /// Declares a kind for an observer outside the built-in table.
    ///
    /// `name` is the full event name in OpenTelemetry's form: lowercase,
    /// dotted, with a prefix of its own and no dynamic part.
    #[must_use]
    pub const fn custom(
        name: &'static str,
        event_type: &'static str,
        subtype: &'static str,
        priority: Priority,
    ) -> Self {
        Self {
            name,
            event_type,
            subtype,
            priority,
            row: CUSTOM_ROW,
        }
    }

    const fn known(
        row: u16,
        name: &'static str,
        event_type: &'static str,
        subtype: &'static str,
        priority: Priority,
    ) -> Self {
        Self {
            name,
            event_type,
            subtype,
            priority,
            row,
        }
    }

    /// The event name, such as `vahti.network.connection.refused`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The type, such as `network`; sampling rules match on it.
    #[must_use]
    pub const fn event_type(&self) -> &'static str {
        self.event_type
    }

    /// The subtype, such as `connection_refused`; sampling rules match on it.
    #[must_use]
    pub const fn subtype(&self) -> &'static str {
        self.subtype
    }

    /// The priority of every event of this kind.
    #[must_use]
    pub const fn priority(&self) -> Priority {
        self.priority
    }

    /// The row in [`EventKind::ALL`], or `None` for a custom kind.
    #[must_use]
    pub const fn row(&self) -> Option<usize> {
        if self.row == CUSTOM_ROW {
            None
        } else {
            Some(self.row as usize)
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $ident:ident = $row:literal, $name:literal, $ty:literal, $sub:literal, $prio:ident;)*) => {
        $(
            $(#[$doc])*
            pub static $ident: EventKind =
                EventKind::known($row, $name, $ty, $sub, Priority::$prio);
        )*

        impl EventKind {
            /// Every built-in kind, by row.
            pub const ALL: &'static [&'static EventKind] = &[$(&$ident),*];
        }
    };
}

kinds! {
    /// A TCP connect was answered with a reset: nobody listens there.
    CONNECTION_REFUSED = 0, "vahti.network.connection.refused", "network", "connection_refused", Normal;
    /// A TCP connection got no answer until the kernel gave up.
    CONNECTION_TIMEOUT = 1, "vahti.network.connection.timeout", "network", "connection_timeout", Normal;
    /// A TCP connect found no way to the host or network.
    CONNECTION_UNREACHABLE = 2, "vahti.network.connection.unreachable", "network", "connection_unreachable", Normal;
    /// The peer reset an established TCP connection.
    CONNECTION_RESET = 3, "vahti.network.connection.reset", "network", "connection_reset", Normal;
    /// The client gave up a TCP connect after at least one SYN went unanswered.
    CONNECTION_ABANDONED = 4, "vahti.network.connection.abandoned", "network", "connection_abandoned", Normal;
    /// The kernel killed a process for memory.
    OOM_KILL = 5, "vahti.container.oom_kill", "container", "oom_kill", Critical;
    /// The first process of a container ended.
    CONTAINER_EXIT = 6, "vahti.container.exit", "container", "container_exit", Critical;
    /// A process ended by a signal that means a crash.
    PROCESS_CRASH = 7, "vahti.container.process.crash", "container", "process_crash", Critical;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_where_it_says_and_no_two_share_a_name() {
        for (i, kind) in EventKind::ALL.iter().enumerate() {
            assert_eq!(kind.row(), Some(i));
            assert!(kind.name().starts_with("vahti."));
            let twins = EventKind::ALL
                .iter()
                .filter(|k| k.name() == kind.name() || k.subtype() == kind.subtype());
            assert_eq!(twins.count(), 1, "{}", kind.name());
        }
    }
}
