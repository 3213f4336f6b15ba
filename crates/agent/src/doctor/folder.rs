//! Whether a store can be kept in a folder: what an agent that starts there would
//! come upon. What can't be told by looking is tried with a file that has no
//! name, or with a folder that is removed at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::store::shown;

/// What keeps an agent from having its store in a folder.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub(super) why: String,
    pub(super) remedy: String,
    /// It stands in place of one of the store's files, so that nobody should try
    /// to read it.
    pub(super) in_place_of_a_file: bool,
}

impl Obstacle {
    fn new(why: String, remedy: impl Into<String>) -> Self {
        Obstacle { why, remedy: remedy.into(), in_place_of_a_file: false }
    }
}

/// How much a store takes at its start, in bytes.
const ROOM: usize = 128 << 10;

/// The files whose names are the store's.
const FILES: [&str; 4] = ["lock", "events.db", "events.db-wal", "events.db-shm"];

/// All that is in the way of a store in this folder. Whether it may be written to
/// is not asked where somebody writes to it already.
pub(super) fn obstacles(folder: &Path, is_in_use: bool) -> Vec<Obstacle> {
    let there = match nearest(folder) {
        Ok(there) => there,
        Err(obstacle) => return vec![obstacle],
    };
    let is_there = there == absolute(folder);
    let mut found = Vec::new();
    if is_there {
        found.extend(FILES.iter().filter_map(|name| in_place_of(&folder.join(name))));
    }
    if !is_in_use && let Err(error) = try_writing(&there) {
        found.push(unwritable(&there, is_there, &error));
    }
    found
}

fn absolute(folder: &Path) -> PathBuf {
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned())
}

/// The folder itself, or the nearest above it that exists.
fn nearest(folder: &Path) -> Result<PathBuf, Obstacle> {
    let folder = absolute(folder);
    let mut there = PathBuf::from("/");
    for part in folder.ancestors().collect::<Vec<_>>().into_iter().rev() {
        match fs::metadata(part) {
            Ok(meta) if meta.is_dir() => there = part.to_owned(),
            Ok(_) if part == folder => {
                let why = format!("{} is no folder", shown(part));
                return Err(Obstacle::new(why, "set store.path to a folder"));
            }
            Ok(_) => {
                let why = format!("{} is no folder, so nothing can be in it", shown(part));
                return Err(Obstacle::new(why, "set another store.path"));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if part.is_symlink() {
                    let why = format!("{} is a symbolic link that leads nowhere", shown(part));
                    let remedy = "make the folder that it leads to, or set another store.path";
                    return Err(Obstacle::new(why, remedy));
                }
                return Ok(there);
            }
            Err(error) => {
                let why = format!("{} can't be looked at: {error}", shown(part));
                let remedy = "ask as root, or as the user whose agent writes it";
                return Err(Obstacle::new(why, remedy));
            }
        }
    }
    Ok(there)
}

/// What stands in place of one of the store's files.
fn in_place_of(file: &Path) -> Option<Obstacle> {
    let kind = fs::symlink_metadata(file).ok()?.file_type();
    if kind.is_file() {
        return None;
    }
    let (what, remedy) = if kind.is_symlink() {
        ("a symbolic link, which an agent refuses", "remove it; to move the store, set store.path")
    } else if kind.is_dir() {
        ("a folder", "move it away, or set another store.path")
    } else if kind.is_fifo() || kind.is_socket() {
        ("a pipe or a socket", "remove it, or set another store.path")
    } else {
        ("a device", "remove it, or set another store.path")
    };
    let why = format!("{} is {what}: no store can have its file there", shown(file));
    Some(Obstacle { in_place_of_a_file: true, ..Obstacle::new(why, remedy) })
}

/// Writes as much as a store takes at its start, without leaving anything.
fn try_writing(folder: &Path) -> io::Result<()> {
    let nameless = OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)
        .map_err(|error| (error.raw_os_error(), error));
    match nameless {
        Ok(file) => fill(file),
        // Not every file system has files without a name.
        Err((Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT | libc::EINVAL), _)) => {
            let trial = folder.join(format!(".vahti-doctor-{}", std::process::id()));
            fs::create_dir(&trial)?;
            let file = trial.join("trial");
            let filled = File::create_new(&file).and_then(fill);
            let removed = fs::remove_file(&file).and_then(|()| fs::remove_dir(&trial));
            filled.and(removed)
        }
        Err((_, error)) => Err(error),
    }
}

fn fill(mut file: File) -> io::Result<()> {
    file.write_all(&[0; ROOM])
}

fn unwritable(there: &Path, is_there: bool, error: &io::Error) -> Obstacle {
    let place = shown(there);
    let why = match is_there {
        true => format!("{place} can't be written to: {error}"),
        false => format!("no folder can be made in {place}: {error}"),
    };
    let is_the_kernels = ["/proc", "/sys"].iter().any(|its| there.starts_with(its));
    let remedy = match error.raw_os_error() {
        _ if is_the_kernels => "set another store.path: these are no files on a disk".to_owned(),
        Some(libc::EROFS) => "mount it to be written to, or set another store.path".to_owned(),
        Some(libc::ENOSPC | libc::EDQUOT) => {
            format!("make room (`df {place}`, `df -i {place}`), or set another store.path")
        }
        Some(libc::EPERM) => format!(
            "`lsattr -d '{place}'` tells whether it is immutable: `chattr -i -a '{place}'`; or set \
             another store.path"
        ),
        Some(libc::EACCES) if is_there => {
            "have the agent's user own it, or set another store.path".to_owned()
        }
        Some(libc::EACCES) => {
            "make the folder as root, with mode 0700 and owned by the agent's user, or set another \
             store.path"
                .to_owned()
        }
        _ => "set another store.path".to_owned(),
    };
    Obstacle::new(why, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(folder: &Path) -> String {
        let told = obstacles(folder, false);
        told.iter().map(|it| format!("{}; do: {}\n", it.why, it.remedy)).collect()
    }

    #[test]
    fn a_folder_that_will_do_has_nothing_in_its_way_and_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lock"), "").unwrap();
        fs::write(folder.path().join("events.db"), "").unwrap();
        assert_eq!(told(folder.path()), "");
        assert_eq!(told(&folder.path().join("a/b")), "");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_stands_in_place_of_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in FILES {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            let told = told(folder.path());
            assert!(told.contains(&format!("{name} is a folder")), "{told}");
            assert!(told.contains("do: move it away"), "{told}");
            fs::remove_dir(&path).unwrap();
        }
    }

    #[test]
    fn what_stands_in_place_of_a_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(told(&file).ends_with("/file is no folder; do: set store.path to a folder\n"));
        let below = told(&file.join("a/b"));
        assert!(below.contains("/file is no folder, so nothing can be in it; do: set"), "{below}");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/nonexistent/folder", &link).unwrap();
        let nowhere = told(&link);
        assert!(nowhere.contains("/link is a symbolic link that leads nowhere"), "{nowhere}");
    }

    #[test]
    fn where_no_folder_can_be_made_that_is_told_with_the_place() {
        let told = told(Path::new("/proc/x/y"));
        assert!(told.starts_with("no folder can be made in /proc: "), "{told}");
    }
}
