//! Where emitters write: no two to one place, and none to where no file can be.

use std::path::Path;

use vahti_runtime::config::bounds::Checked;
use vahti_runtime::event::escape;

use super::{EmitterConfig, EmitterType, quoted};

/// Two emitters must not share a name, or the ledger could not tell them apart;
/// nor a file, or the second could not lock it.
pub(super) fn check_apart(
    checked: &mut Checked,
    path: &str,
    emitter: &EmitterConfig,
    before: &[EmitterConfig],
) {
    let is_taken = before.iter().any(|other| other.name() == emitter.name());
    checked.that(!is_taken, &format!("{path}.name"), || {
        (quoted(emitter.name()), "a name that no other emitter has".to_owned())
    });
    // By its folder as it is on this machine, so that `a/../b` is `b`; where
    // there is none, by its parts, so that `a//b` is `a/./b`.
    let file = |emitter: &EmitterConfig| {
        let path = emitter.path.clone().filter(|_| emitter.kind == EmitterType::File)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize();
        Some(match (folder, path.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => path,
        })
    };
    let other = file(emitter).and_then(|path| {
        before
            .iter()
            .position(|other| file(other).is_some_and(|o| o.components().eq(path.components())))
    });
    checked.that(other.is_none(), &format!("{path}.path"), || {
        let shown = emitter.path.clone().unwrap_or_default();
        let bound = format!("another file than that of emitters[{}]", other.unwrap_or_default());
        (shown_path(&shown), bound)
    });
}

/// A path ends at a zero, so none has one in it.
pub(super) fn check_no_nul(checked: &mut Checked, key: &str, path: &Path) {
    checked.that(!path.as_os_str().as_encoded_bytes().contains(&0), key, || {
        (shown_path(path), "a path without NUL characters".to_owned())
    });
}

/// Whether there can be a file to write to in time: what is missing may come, and
/// is waited for; what stands in its place is a mistake.
pub(super) fn check_writable_in_time(checked: &mut Checked, path: &Path) {
    use std::os::unix::fs::FileTypeExt;

    let kind = path.symlink_metadata().ok().map(|meta| meta.file_type());
    let bound = match kind {
        _ if path.as_os_str().as_encoded_bytes().ends_with(b"/") => "without a / at its end",
        Some(kind) if kind.is_dir() => "the path of a file: that is a folder",
        Some(kind) if kind.is_symlink() => {
            "the path that it leads to: that is a symbolic link, which is not followed"
        }
        Some(kind) if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() => {
            "the path of a file: that is a device or a pipe; to write to it, use the emitter \
             stdout and redirect it"
        }
        Some(kind) if kind.is_socket() => "the path of a file: that is a socket",
        _ => return,
    };
    checked.that(false, "path", || (shown_path(path), bound.to_owned()));
}

fn shown_path(path: &Path) -> String {
    format!("\"{}\"", escape(path.as_os_str().as_encoded_bytes()))
}
