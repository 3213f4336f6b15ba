//! What a statically linked C library has to be told.
//!
//! glibc finds host names as `/etc/nsswitch.conf` says, and loads a shared
//! library for whatever is named there but files and DNS. In a static program
//! such a library brings a C library of its own, of another version, which may
//! crash (glibc's manual, "Actions in the NSS configuration", and its linker's
//! warning about getaddrinfo). What it has built in is enough.

/// Names come from `/etc/hosts` and DNS, whatever the machine's configuration
/// names besides. Before any name is looked up; without effect in a program
/// that takes the machine's C library.
pub(crate) fn find_names_by_itself() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    imp::configure();
}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod imp {
    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        /// nss.h: takes a database and what its line would say.
        fn __nss_configure_lookup(database: *const c_char, line: *const c_char) -> c_int;
    }

    pub(super) fn configure() {
        // SAFETY: two C strings that live for ever; no other thread is there yet.
        let refused =
            unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) } != 0;
        // Only what it does not know is refused, and it knows these.
        debug_assert!(!refused);
    }
}
