//! A disk that loses what was not synced, below SQLite.
//!
//! A VFS that passes everything on to SQLite's own, and keeps beside it what a
//! disk would hold for certain: what each file was at its last sync, the writes
//! since then, and which names a sync of the folder has made last. A power cut
//! takes a copy of that: of the writes since a file's sync each is there, lost,
//! or torn at sectors of 512 bytes, whatever became of those before it; names
//! that were made or deleted since the folder's sync may be there or not. The
//! shared memory of the log is not in it at all.
//!
//! What it takes for granted is what SQLite does by default: a write changes no
//! byte beyond its own (powersafe overwrite).

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, Weak};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

/// The name under which SQLite knows it.
pub(super) const NAME: &str = "vahti-lossy";
const NAME_C: &CStr = c"vahti-lossy";

/// What a disk tears a write at.
const SECTOR: usize = 512;

/// Small, seeded, and the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Seeds that differ in a bit only soon have nothing in common.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// From 0 to `n`, without `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True in this many of a hundred.
    pub(super) fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

/// What stands on a disk: names and bytes.
pub(super) type Image = BTreeMap<String, Vec<u8>>;

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

/// One file, by whatever names.
#[derive(Default)]
struct Contents {
    synced: Vec<u8>,
    since: Vec<Change>,
}

#[derive(Default)]
struct State {
    contents: Vec<Contents>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Made (with what) and deleted since the folder's sync.
    names_since: Vec<(String, Option<usize>)>,
    operations: u64,
    cut_at: Option<u64>,
    /// Not before the next sync is done.
    cut_after_sync: bool,
    cut: Option<Image>,
    random: Option<Random>,
    /// How many bytes files may still grow by.
    room: Option<u64>,
}

/// What one folder stands on.
pub(super) struct Disk {
    state: Mutex<State>,
}

static DISKS: Mutex<Vec<(PathBuf, Weak<Disk>)>> = Mutex::new(Vec::new());

impl Disk {
    /// Puts a folder that holds `image` on a disk that loses things. What is
    /// in the image is there for certain.
    pub(super) fn of(folder: &Path, image: &Image, random: Random) -> Arc<Self> {
        register();
        let mut state = State { random: Some(random), ..State::default() };
        for (name, bytes) in image {
            std::fs::write(folder.join(name), bytes).unwrap();
            state.synced_names.insert(name.clone(), state.contents.len());
            state.contents.push(Contents { synced: bytes.clone(), since: Vec::new() });
        }
        state.names = state.synced_names.clone();
        let disk = Arc::new(Disk { state: Mutex::new(state) });
        let mut disks = DISKS.lock().unwrap();
        disks.retain(|(path, disk)| path != folder && disk.strong_count() > 0);
        disks.push((folder.to_owned(), Arc::downgrade(&disk)));
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Cuts the power at the nth change of the disk from now on, or at the end
    /// of the sync that follows it, of which nobody is told any more.
    pub(super) fn cut_at(&self, n: u64, after_sync: bool) {
        let mut state = self.lock();
        state.cut_at = Some(state.operations + n);
        state.cut_after_sync = after_sync;
    }

    /// What the cut left, if there was one.
    pub(super) fn after_cut(&self) -> Option<Image> {
        self.lock().cut.clone()
    }

    /// Cuts the power now, unless it was cut already.
    pub(super) fn cut(&self) -> Image {
        let mut state = self.lock();
        state.cut();
        state.cut.clone().unwrap()
    }

    /// Lets files grow by this much and no more; `None` ends it.
    pub(super) fn limit(&self, room: Option<u64>) {
        self.lock().room = room;
    }
}

impl State {
    fn operation(&mut self) {
        self.operations += 1;
        if self.is_due() && !self.cut_after_sync {
            self.cut();
        }
    }

    fn is_due(&self) -> bool {
        self.cut_at.is_some_and(|at| at <= self.operations)
    }

    fn cut(&mut self) {
        if self.cut.is_some() {
            return;
        }
        let mut random = self.random.take().unwrap();
        // Disks that lose nearly all and disks that lose nearly nothing.
        let kept = [0, 5, 30, 50, 70, 95, 100][random.below(7) as usize];
        let torn = if kept == 100 { 0 } else { [0, 10, 50][random.below(3) as usize] };
        let mut names = self.synced_names.clone();
        for (name, file) in &self.names_since {
            if !random.percent(kept) {
                continue;
            }
            match file {
                Some(file) => drop(names.insert(name.clone(), *file)),
                None => drop(names.remove(name)),
            }
        }
        let mut image = Image::new();
        for (name, file) in names {
            let contents = &self.contents[file];
            let mut bytes = contents.synced.clone();
            for change in &contents.since {
                change.survives(&mut bytes, &mut random, kept, torn);
            }
            image.insert(name, bytes);
        }
        self.cut = Some(image);
        self.random = Some(random);
    }

    /// The file of this name, made if there is none.
    fn file(&mut self, name: &str, path: &Path) -> usize {
        if let Some(file) = self.names.get(name) {
            return *file;
        }
        // Before SQLite opens it: whoever closes a file lets go of its locks.
        let found = std::fs::read(path).unwrap_or_default();
        let file = self.contents.len();
        let since = vec![Change::Write { at: 0, bytes: found }];
        self.contents.push(Contents { synced: Vec::new(), since });
        self.names.insert(name.to_owned(), file);
        self.names_since.push((name.to_owned(), Some(file)));
        file
    }

    fn sync_folder(&mut self) {
        self.synced_names = self.names.clone();
        self.names_since.clear();
    }
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Change::Truncate(len) => file.resize(*len, 0),
            Change::Write { at, bytes } => write(file, *at, bytes),
        }
    }

    fn survives(&self, file: &mut Vec<u8>, random: &mut Random, kept: u64, torn: u64) {
        let Change::Write { at, bytes } = self else {
            if random.percent(kept) {
                self.apply(file);
            }
            return;
        };
        if !random.percent(torn) {
            if random.percent(kept) {
                self.apply(file);
            }
            return;
        }
        let mut done = 0;
        while done < bytes.len() {
            let to_border = SECTOR - (at + done) % SECTOR;
            let part = &bytes[done..bytes.len().min(done + to_border)];
            if random.percent(50) {
                write(file, at + done, part);
            }
            done += part.len();
        }
    }
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What SQLite takes for a file of ours; that of its own VFS lies behind it.
#[repr(C)]
struct File {
    base: sqlite3_file,
    /// Null for what is on no disk of ours.
    open: *mut Open,
}

struct Open {
    disk: Arc<Disk>,
    file: usize,
    /// Whether its next sync is to sync the folder too, as SQLite's own VFS
    /// does for logs and journals that it made.
    sync_folder: bool,
}

/// SQLite's own, to which everything is passed on.
struct Real(*mut sqlite3_vfs);

// SAFETY: SQLite keeps a VFS for as long as the program runs, does not change
// it after it was registered, and calls it from any thread.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

static REAL: std::sync::OnceLock<Real> = std::sync::OnceLock::new();

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: asks for the default VFS, which lives as long as the program.
        let real = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        assert!(!real.is_null());
        REAL.get_or_init(|| Real(real));
        // SAFETY: `real` is a valid VFS; it is plain data.
        let mut ours = unsafe { *real };
        ours.szOsFile += size_of::<File>() as c_int;
        ours.pNext = std::ptr::null_mut();
        ours.zName = NAME_C.as_ptr();
        ours.xOpen = Some(open);
        ours.xDelete = Some(delete);
        // SAFETY: it is leaked, so it lives as long as the program.
        let result = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(ours)), 0) };
        assert_eq!(result, ffi::SQLITE_OK);
    });
}

fn real_vfs() -> *mut sqlite3_vfs {
    REAL.get().unwrap().0
}

/// SQLite's own file behind one of ours.
unsafe fn behind(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: SQLite allocated szOsFile bytes: ours, then those of the real one.
    unsafe { file.cast::<u8>().add(size_of::<File>()).cast() }
}

unsafe fn methods_behind<'a>(file: *mut sqlite3_file) -> &'a sqlite3_io_methods {
    // SAFETY: a file that is open has methods, which are static.
    unsafe { &*(*behind(file)).pMethods }
}

unsafe fn opened<'a>(file: *mut sqlite3_file) -> Option<&'a mut Open> {
    // SAFETY: it is a `File`, and SQLite calls no two of its methods at once.
    unsafe { (*file.cast::<File>()).open.as_mut() }
}

/// The disk on which a path lies, and the path's last part.
fn disk_of(path: &Path) -> Option<(Arc<Disk>, String)> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    let disks = DISKS.lock().unwrap();
    let disk = disks.iter().find(|(path, _)| path == folder)?.1.upgrade()?;
    Some((disk, name.to_owned()))
}

unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SQLite hands over a string that ends with a zero.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(name.to_str().ok()?))
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `file` has room for ours and the real one; `name` is a string.
    unsafe {
        (*file).pMethods = std::ptr::null();
        (*file.cast::<File>()).open = std::ptr::null_mut();
        let place = path_of(name).and_then(|path| Some((disk_of(&path)?, path)));
        let mut open = None;
        if let Some(((disk, name), path)) = place
            && (path.exists() || flags & ffi::SQLITE_OPEN_CREATE != 0)
        {
            let is_log = flags & (ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL) != 0;
            let sync_folder = is_log && flags & ffi::SQLITE_OPEN_CREATE != 0;
            let mut state = disk.lock();
            state.operation();
            let file = state.file(&name, &path);
            drop(state);
            open = Some(Box::new(Open { disk, file, sync_folder }));
        }
        let real = real_vfs();
        let Some(real_open) = (*real).xOpen else { return ffi::SQLITE_CANTOPEN };
        let result = real_open(real, name, behind(file), flags, out_flags);
        if !(*behind(file)).pMethods.is_null() {
            (*file).pMethods = &METHODS;
            if let Some(open) = open {
                (*file.cast::<File>()).open = Box::into_raw(open);
            }
        }
        result
    }
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: `name` is a string, and the real VFS is called as it is.
    unsafe {
        if let Some((disk, name)) = path_of(name).and_then(|path| disk_of(&path)) {
            let mut state = disk.lock();
            if state.names.remove(&name).is_some() {
                state.names_since.push((name, None));
            }
            state.operation();
            if sync != 0 {
                state.sync_folder();
            }
        }
        let real = real_vfs();
        (*real).xDelete.map_or(ffi::SQLITE_IOERR_DELETE, |delete| delete(real, name, sync))
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: it is open, so the real one is too; nobody uses it after this.
    unsafe {
        let open = std::mem::replace(&mut (*file.cast::<File>()).open, std::ptr::null_mut());
        if !open.is_null() {
            drop(Box::from_raw(open));
        }
        methods_behind(file).xClose.map_or(ffi::SQLITE_OK, |close| close(behind(file)))
    }
}

unsafe extern "C" fn write_at(
    file: *mut sqlite3_file,
    bytes: *const c_void,
    len: c_int,
    at: sqlite3_int64,
) -> c_int {
    // SAFETY: the file is open, and `bytes` are `len` readable ones.
    unsafe {
        if let Some(open) = opened(file) {
            let mut size = 0;
            if let Some(file_size) = methods_behind(file).xFileSize {
                file_size(behind(file), &mut size);
            }
            let growth = u64::try_from(at + i64::from(len) - size).unwrap_or(0);
            let mut state = open.disk.lock();
            if let Some(room) = &mut state.room {
                let Some(left) = room.checked_sub(growth) else { return ffi::SQLITE_FULL };
                *room = left;
            }
            let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), len as usize).to_vec();
            state.contents[open.file].since.push(Change::Write { at: at as usize, bytes });
            state.operation();
        }
        let real = methods_behind(file).xWrite;
        real.map_or(ffi::SQLITE_IOERR_WRITE, |real| real(behind(file), bytes, len, at))
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: sqlite3_int64) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        if let Some(open) = opened(file) {
            let mut state = open.disk.lock();
            state.contents[open.file].since.push(Change::Truncate(len as usize));
            state.operation();
        }
        let real = methods_behind(file).xTruncate;
        real.map_or(ffi::SQLITE_IOERR_TRUNCATE, |real| real(behind(file), len))
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let Some(open) = opened(file) else {
            let real = methods_behind(file).xSync;
            return real.map_or(ffi::SQLITE_IOERR_FSYNC, |real| real(behind(file), flags));
        };
        // A cut comes before the sync is done. The real disk need not sync.
        let mut state = open.disk.lock();
        state.operation();
        let contents = &mut state.contents[open.file];
        for change in std::mem::take(&mut contents.since) {
            change.apply(&mut contents.synced);
        }
        if std::mem::take(&mut open.sync_folder) {
            state.sync_folder();
        }
        if state.is_due() {
            state.cut();
        }
        ffi::SQLITE_OK
    }
}

/// Passes a call on to the real file.
macro_rules! passed_on {
    ($name:ident, $method:ident, ($($arg:ident: $type:ty),*) -> $result:ty, $missing:expr) => {
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $arg: $type)*) -> $result {
            // SAFETY: the file is open, and the arguments are passed on as they are.
            unsafe {
                methods_behind(file).$method.map_or($missing, |real| real(behind(file) $(, $arg)*))
            }
        }
    };
}

passed_on!(read, xRead, (to: *mut c_void, len: c_int, at: sqlite3_int64) -> c_int, ffi::SQLITE_IOERR_READ);
passed_on!(file_size, xFileSize, (size: *mut sqlite3_int64) -> c_int, ffi::SQLITE_IOERR_FSTAT);
passed_on!(lock, xLock, (level: c_int) -> c_int, ffi::SQLITE_IOERR_LOCK);
passed_on!(unlock, xUnlock, (level: c_int) -> c_int, ffi::SQLITE_IOERR_UNLOCK);
passed_on!(is_reserved, xCheckReservedLock, (result: *mut c_int) -> c_int, ffi::SQLITE_IOERR_LOCK);
passed_on!(control, xFileControl, (op: c_int, arg: *mut c_void) -> c_int, ffi::SQLITE_NOTFOUND);
passed_on!(sector_size, xSectorSize, () -> c_int, SECTOR as c_int);
passed_on!(characteristics, xDeviceCharacteristics, () -> c_int, 0);
passed_on!(shm_map, xShmMap, (page: c_int, size: c_int, extend: c_int, to: *mut *mut c_void) -> c_int, ffi::SQLITE_IOERR_SHMMAP);
passed_on!(shm_lock, xShmLock, (offset: c_int, n: c_int, flags: c_int) -> c_int, ffi::SQLITE_IOERR_SHMLOCK);
passed_on!(shm_barrier, xShmBarrier, () -> (), ());
passed_on!(shm_unmap, xShmUnmap, (delete: c_int) -> c_int, ffi::SQLITE_OK);

/// Without xFetch: all is read and written by calls that are seen here.
static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write_at),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(is_reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

const _: () = assert!(offset_of!(File, base) == 0 && size_of::<File>().is_multiple_of(8));

/// What stands in a folder, but for locks and shared memory: what a kill leaves.
pub(super) fn image_of(folder: &Path) -> Image {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let kept = named.filter(|(name, _)| name != "lock" && !name.ends_with("-shm"));
    kept.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

#[test]
fn what_was_synced_stays_and_of_the_rest_some_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (mut whole, mut lost) = (0, HashMap::new());
    for seed in 0..60 {
        let path = folder.path().join(seed.to_string());
        std::fs::create_dir(&path).unwrap();
        let disk = Disk::of(&path, &Image::new(), Random::new(seed));
        let mut state = disk.lock();
        let file = state.file("a", &path.join("a"));
        let contents = &mut state.contents[file];
        write(&mut contents.synced, 0, &[1; 1_024]);
        let change = |at, byte| Change::Write { at, bytes: vec![byte; 1_024] };
        contents.since = vec![change(0, 2), change(1_024, 3), Change::Truncate(1_536)];
        state.sync_folder();
        drop(state);
        let bytes = disk.cut().remove("a").unwrap();
        whole += u32::from(bytes == [[2; 512], [2; 512], [3; 512]].concat());
        *lost.entry(bytes).or_insert(0) += 1;
    }
    assert!(whole > 0 && lost.len() > 5, "{whole} whole, {} sorts of loss", lost.len());
}
