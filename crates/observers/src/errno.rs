//! Error numbers by name.

use std::borrow::Cow;

/// Those that a TCP socket can have: its own, and what ICMP is turned into
/// (`icmp_err_convert` in `net/ipv4/icmp.c`, `tab_unreach` in `net/ipv6/icmp.c`),
/// and what a route refuses with (`fib_props` in `net/ipv4/fib_semantics.c`).
const NAMES: [(i32, &str); 19] = [
    (libc::EPERM, "EPERM"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EINVAL, "EINVAL"),
    (libc::EPIPE, "EPIPE"),
    (libc::ENONET, "ENONET"),
    (libc::EPROTO, "EPROTO"),
    (libc::EMSGSIZE, "EMSGSIZE"),
    (libc::ENOPROTOOPT, "ENOPROTOOPT"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (libc::ENETDOWN, "ENETDOWN"),
    (libc::ENETUNREACH, "ENETUNREACH"),
    (libc::ECONNABORTED, "ECONNABORTED"),
    (libc::ECONNRESET, "ECONNRESET"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::EHOSTDOWN, "EHOSTDOWN"),
    (libc::EHOSTUNREACH, "EHOSTUNREACH"),
];

/// The name, or `E` and the number of one that has none here.
pub(crate) fn name(errno: i32) -> Cow<'static, str> {
    match NAMES.iter().find(|(number, _)| *number == errno) {
        Some((_, name)) => Cow::Borrowed(name),
        None => Cow::Owned(format!("E{}", errno.unsigned_abs())),
    }
}
