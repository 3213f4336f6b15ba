//! Notices that a file is another one, by inotify(7), without looking at it
//! again and again.
//!
//! A path may lead over symbolic links, as that of a Kubernetes ConfigMap does:
//! `vahti.yaml` is a link to `..data/vahti.yaml`, `..data` one to a folder, and
//! an update puts another link in the place of `..data`. So each name on the way
//! that is a link is watched where it stands, the file itself where the last one
//! leads to, and all folders above for being moved away. A name that is missing
//! is watched for where it should be. After each change all is watched anew
//! before the file is read, so nothing is missed between the two.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// More links than the kernel follows.
const MAX_LINKS: usize = 40;

/// Names that come and go, or whose rights change.
const NAMES: u32 =
    libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_MOVED_FROM | libc::IN_DELETE | libc::IN_ATTRIB;
/// A folder that goes itself, or whose rights change.
const ITSELF: u32 = libc::IN_DELETE_SELF | libc::IN_MOVE_SELF | libc::IN_ATTRIB;
/// A file that is written to, or that may be read now.
const CONTENT: u32 = libc::IN_MODIFY | libc::IN_CLOSE_WRITE | libc::IN_ATTRIB;

/// The fixed part of an event: which watch, what, a cookie, how long its name is.
const HEAD: usize = 16;

/// What is watched for one path.
pub(super) struct Watch {
    events: File,
    /// Which names concern us in the folder of a watch; all do where none is.
    names: HashMap<i32, BTreeSet<OsString>>,
}

/// What there is to watch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    /// By folder the names in it.
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// Folders that must stay where they are.
    folders: BTreeSet<PathBuf>,
    file: Option<PathBuf>,
}

impl Watch {
    /// Watches the way to a file, as it is now.
    ///
    /// # Errors
    /// The kernel watches no more for this user, or a folder on the way may not
    /// be read by it.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        // SAFETY: no memory is involved; the descriptor is ours alone.
        let events = unsafe {
            let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        let mut watch = Watch { names: HashMap::new(), events };
        let Places { names, folders, file } = Places::on_the_way_to(&path);
        for folder in &folders {
            watch.add_if_allowed(folder, ITSELF | libc::IN_ONLYDIR)?;
        }
        for (folder, names) in names {
            if let Some(number) = watch.add(&folder, NAMES | ITSELF | libc::IN_ONLYDIR)? {
                watch.names.entry(number).or_default().extend(names);
            }
        }
        if let Some(file) = file {
            watch.add_if_allowed(&file, CONTENT)?;
        }
        Ok(watch)
    }

    /// The same of something that may not be read: when that changes, the folder
    /// that it is in tells.
    fn add_if_allowed(&self, path: &Path, mask: u32) -> io::Result<()> {
        match self.add(path, mask) {
            Err(error) if error.raw_os_error() != Some(libc::EACCES) => Err(error),
            _ => Ok(()),
        }
    }

    /// Adds to what is watched of something; `None` if it is gone meanwhile,
    /// which whatever is watched above it tells.
    fn add(&self, path: &Path, mask: u32) -> io::Result<Option<i32>> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mask = mask | libc::IN_MASK_ADD;
        // SAFETY: `name` ends with a zero and lives for the length of the call.
        match unsafe { libc::inotify_add_watch(self.events.as_raw_fd(), name.as_ptr(), mask) } {
            -1 => match io::Error::last_os_error() {
                error if is_gone(&error) => {
                    tracing::debug!(path = %path.display(), %error, "is not watched");
                    Ok(None)
                }
                error => Err(error),
            },
            number => Ok(Some(number)),
        }
    }

    /// What has something to read when there may be news.
    pub(super) fn fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Whether anything of what has happened concerns the file. Does not wait.
    pub(super) fn has_news(&mut self) -> bool {
        let mut buffer = [0; 4 << 10];
        let mut news = false;
        loop {
            match self.events.read(&mut buffer) {
                Ok(0) => return news,
                Ok(len) => news |= self.concerns(buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_nothing_more) => return news,
            }
        }
    }

    fn concerns(&self, mut events: &[u8]) -> bool {
        let number = |bytes: &[u8], at: usize| {
            let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map_or(0, u32::from_ne_bytes)
        };
        let mut any = false;
        while events.len() >= HEAD {
            let (watch, mask) = (number(events, 0).cast_signed(), number(events, 4));
            let end = (HEAD + number(events, 12) as usize).min(events.len());
            let (event, rest) = events.split_at(end);
            let name = event.get(HEAD..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let ours = self.names.get(&watch);
            let is_ours = ours.is_some_and(|names| names.contains(OsStr::from_bytes(name)));
            // Without a name it is about what is watched itself.
            any |= mask & libc::IN_IGNORED == 0 && (name.is_empty() || is_ours);
            events = rest;
        }
        any
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

impl Places {
    /// Of an absolute path.
    fn on_the_way_to(path: &Path) -> Self {
        let mut places = Places::default();
        let mut at = PathBuf::from("/");
        let mut todo = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == "/" {
                at = PathBuf::from("/");
                continue;
            }
            if name == ".." {
                at.pop();
                continue;
            }
            places.folders.insert(at.clone());
            let next = at.join(&name);
            let there = next.symlink_metadata().map(|there| there.file_type());
            let is_link = there.as_ref().is_ok_and(std::fs::FileType::is_symlink);
            if is_link || there.is_err() || todo.is_empty() {
                places.names.entry(at.clone()).or_default().insert(name);
            }
            links += usize::from(is_link);
            match (is_link, there) {
                (_, Err(_)) => break,
                (true, _) if links > MAX_LINKS => break,
                (true, _) => {
                    let target = next.read_link().unwrap_or_default();
                    let mut way = components(&target);
                    way.append(&mut todo);
                    todo = way;
                }
                (false, Ok(_)) if todo.is_empty() => places.file = Some(next),
                (false, Ok(_)) => at = next,
            }
        }
        places
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(places: &Places, root: &Path) -> Vec<String> {
        let all = places.names.iter().flat_map(|(folder, names)| {
            let folder = folder.strip_prefix(root).unwrap_or(folder);
            names.iter().map(move |name| folder.join(name).display().to_string())
        });
        all.collect()
    }

    #[test]
    fn every_link_on_the_way_is_watched_where_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/c.yaml"), "").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/c.yaml", root.join("c.yaml")).unwrap();
        let places = Places::on_the_way_to(&root.join("c.yaml"));
        assert_eq!(names(&places, &root), ["..data", "c.yaml", "..1/c.yaml"]);
        assert_eq!(places.file, Some(root.join("..1/c.yaml")));
        assert!(places.folders.contains(Path::new("/")) && places.folders.contains(&root));
        fs::remove_dir_all(root.join("..1")).unwrap();
        let places = Places::on_the_way_to(&root.join("c.yaml"));
        assert_eq!(names(&places, &root), ["..1", "..data", "c.yaml"], "what is missing as well");
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(Places::on_the_way_to(&root.join("loop")).file, None);
    }

    #[test]
    fn what_happens_to_others_is_no_news() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(&path).unwrap();
        fs::write(folder.path().join("other"), "b").unwrap();
        fs::remove_file(folder.path().join("other")).unwrap();
        assert!(!watch.has_news());
        fs::write(&path, "b").unwrap();
        assert!(watch.has_news() && !watch.has_news());
        fs::write(folder.path().join("new"), "c").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(watch.has_news());
        let mut watch = Watch::new(&path).unwrap();
        fs::write(&path, "d").unwrap();
        assert!(watch.has_news(), "the new file is watched");
        let mut watch = Watch::new(&path).unwrap();
        fs::rename(folder.path(), folder.path().with_extension("away")).unwrap();
        assert!(watch.has_news());
        let mut watch = Watch::new(&path).unwrap();
        fs::rename(folder.path().with_extension("away"), folder.path()).unwrap();
        assert!(watch.has_news(), "it is back");
    }

    #[test]
    fn garbage_instead_of_events_is_no_news() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::new(&folder.path().join("c")).unwrap();
        for len in 0..HEAD {
            assert!(!watch.concerns(&vec![0xff; len]));
        }
        watch.concerns(&[0xff; 64]);
    }
}
