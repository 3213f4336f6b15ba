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
    /// Whether a storm of them is folded into summaries.
    folds: bool,
    /// Hashes of type, and of type and subtype, for look-ups that need no
    /// further hashing.
    type_hash: u64,
    subtype_hash: u64,
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
        Self::row_of(CUSTOM_ROW, name, event_type, subtype, priority)
    }

    /// Folds storms of this kind: within a second, what follows the first event
    /// of a container (else process), peer and error code becomes one summary
    /// with the exact count and only the fields that all of them shared.
    /// Critical kinds never fold.
    #[must_use]
    pub const fn folding(self) -> Self {
        Self { folds: matches!(self.priority, Priority::Normal), ..self }
    }

    const fn row_of(
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
            folds: false,
            type_hash: Self::hash_type(event_type),
            subtype_hash: Self::hash_subtype(event_type, subtype),
        }
    }

    /// The hash that [`EventKind::type_hash`] gives, for a type from elsewhere.
    pub(crate) const fn hash_type(event_type: &str) -> u64 {
        spread(fnv(FNV_START, event_type.as_bytes()))
    }

    /// The hash that [`EventKind::subtype_hash`] gives.
    pub(crate) const fn hash_subtype(event_type: &str, subtype: &str) -> u64 {
        let hash = fnv(fnv(FNV_START, event_type.as_bytes()), &[0xff]);
        spread(fnv(hash, subtype.as_bytes()))
    }

    pub(crate) const fn type_hash(&self) -> u64 {
        self.type_hash
    }

    pub(crate) const fn subtype_hash(&self) -> u64 {
        self.subtype_hash
    }

    /// Whether a storm of them is folded.
    #[must_use]
    pub const fn folds(&self) -> bool {
        self.folds
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
        if self.row == CUSTOM_ROW { None } else { Some(self.row as usize) }
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: simple enough to be computed at compile time. 64 bits over names
/// from source code and configuration: not an input that anybody else chooses.
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

/// Hash tables look at the top bits, which FNV mixes least.
const fn spread(hash: u64) -> u64 {
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $ident:ident = $row:literal, $name:literal, $ty:literal, $sub:literal, $prio:ident;)*) => {
        $(
            $(#[$doc])*
            pub static $ident: EventKind =
                EventKind::row_of($row, $name, $ty, $sub, Priority::$prio).folding();
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
    /// For a while nobody watched: the agent ended uncleanly and came back.
    AGENT_GAP = 8, "vahti.agent.gap", "agent", "gap", Critical;
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
