//! Opens compiled objects: one look at the kernel's types for all of them.

use aya::{Btf, EbpfLoader, VerifierLogLevel};

use crate::cgroup::Hierarchy;
use crate::error::{EbpfError, is_refusal};
use crate::kernel_btf;
use crate::manager::AyaManager;
use crate::rights;

/// A compiled CO-RE object.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    /// For errors and logs.
    pub name: &'static str,
    /// The ELF file, aligned to 8 bytes ([`include_bytes_aligned!`](crate::include_bytes_aligned)).
    pub bytes: &'static [u8],
}

/// Opens objects: makes their maps and fits their programs to this kernel.
/// No program is loaded or attached yet.
///
/// The constants `cgroup_v1`, `hierarchy_id` and `page_size` are set in every
/// object that has them.
///
/// # Errors
/// Rights or kernel types are missing, so that no object can be opened. One
/// object that can't is an error in the list.
pub fn open(
    objects: &[Object],
    hierarchy: Hierarchy,
) -> Result<Vec<Result<AyaManager, EbpfError>>, EbpfError> {
    rights::check()?;
    rights::raise_memlock_limit();
    let bytes: Vec<&[u8]> = objects.iter().map(|o| o.bytes).collect();
    let btf = kernel_btf::read_for(&bytes)?;
    let mut managers = open_with(objects, hierarchy, &btf);
    drop(btf);
    release_memory();
    // What may not be done for one object may not be done for any.
    let refused = managers.iter().position(|m| m.as_ref().is_err_and(EbpfError::is_permission));
    if let Some(Err(error)) = refused.map(|index| managers.swap_remove(index)) {
        return Err(error);
    }
    Ok(managers)
}

fn open_with(
    objects: &[Object],
    hierarchy: Hierarchy,
    btf: &Btf,
) -> Vec<Result<AyaManager, EbpfError>> {
    let cgroup_v1 = u32::from(hierarchy.version == 1);
    let page_size = crate::ring::page_size() as u32;
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        // Logs of programs that the verifier took cost time and tell nothing.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global("cgroup_v1", &cgroup_v1, false)
        .override_global("hierarchy_id", &hierarchy.id, false)
        .override_global("page_size", &page_size, false);
    objects
        .iter()
        .map(|object| {
            let ebpf = loader.load(object.bytes).map_err(|error| failed(object, &error))?;
            Ok(AyaManager::new(object.name, ebpf))
        })
        .collect()
}

fn failed(object: &Object, error: &aya::EbpfError) -> EbpfError {
    if is_refusal(error) {
        return rights::refused(format!("opening object {}", object.name), chain(error));
    }
    EbpfError::Object { object: object.name.to_owned(), error: chain(error) }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Gives back what the kernel's types took. glibc keeps freed memory
/// otherwise, and the agent would be billed for it as long as it runs.
fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers and is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}
