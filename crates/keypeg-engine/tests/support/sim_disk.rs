//! A disk in memory that forgets at a crash what was not synced: each dirty sector by itself, each
//! change of a name from some point on. It can crash at any operation, before or after its effect.

use super::SeededRandom;
use keypeg_engine::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a crash leaves or takes as a whole, unless [`SimDisk::tears_at`] says otherwise.
const SECTOR: usize = 512;

/// What is done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Rename,
    Remove,
    SyncDir,
    Write,
    SetLen,
    Sync,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It has its effect.
    Done,
    /// It fails and has half of its effect at most; a sync that fails takes with it what it was to
    /// make durable.
    Fails,
    /// The process or the machine ends before it, or after it.
    Ends { after: bool },
}

/// Who decides what becomes of each operation. It may use the disk itself meanwhile.
pub(crate) trait FaultPolicy: Send + Sync {
    fn before(&self, operation: Operation, name: &str) -> Fate;
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    /// What a reader sees: `durable`, then `phantom`, then `dirty`.
    seen: Vec<u8>,
    dirty: Vec<Change>,
    /// Written before a sync that failed: still read back, never durable, whatever is synced.
    phantom: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

/// When the disk stops working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CrashAt {
    /// The operation, counted from 0.
    pub(crate) operation: u64,
    /// Whether that operation still has its effect.
    pub(crate) after: bool,
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<NameChange>,
    operations: u64,
    crash_at: Option<CrashAt>,
    fail_sync_at: Option<u64>,
    /// Bytes it holds at most.
    capacity: Option<usize>,
    /// Bytes that a crash leaves or takes as a whole.
    sector: usize,
    crashed: bool,
}

/// The disk. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
    weather: Option<Arc<dyn FaultPolicy>>,
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
    name: String,
}

impl SimDisk {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A disk whose operations somebody decides on, and which tears at `sector` bytes.
    pub(crate) fn under(weather: Arc<dyn FaultPolicy>, sector: usize) -> Self {
        let disk = Self { weather: Some(weather), ..Self::default() };
        disk.lock().sector = sector;
        disk
    }

    /// Ends the process that uses it: nothing it still does has an effect. What it wrote stays in
    /// the page cache.
    pub(crate) fn end_process(&self) {
        self.lock().crashed = true;
    }

    /// Lets the next process use it. Of what a failed sync left in the page cache random tells what
    /// is still there.
    pub(crate) fn next_process(&self, random: &mut SeededRandom) {
        let mut state = self.lock();
        state.crashed = false;
        for inode in &mut state.inodes {
            if !inode.phantom.is_empty() && random.below(2) == 0 {
                inode.seen.clone_from(&inode.durable);
                for change in &inode.dirty {
                    change.apply(&mut inode.seen);
                }
            }
            inode.phantom.clear();
        }
    }

    /// Cuts the power: what the next process finds is what was synced, and of the rest what random
    /// leaves.
    pub(crate) fn cut_power(&self, random: &mut SeededRandom) {
        let after = self.after_crash(random);
        let mut after = after.lock().clone();
        after.capacity = self.lock().capacity;
        for (at, inode) in after.inodes.iter_mut().enumerate() {
            if !after.names.values().any(|named| *named == at) {
                *inode = Inode::default();
            }
        }
        *self.lock() = after;
    }

    /// Sets when it crashes, counted from now.
    pub(crate) fn crash_at(&self, at: Option<CrashAt>) {
        let mut state = self.lock();
        state.operations = 0;
        state.crash_at = at;
    }

    /// Operations since [`SimDisk::crash_at`] was last called.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Sets which operation, counted from now, fails if it is a file's sync: its process ends, the
    /// machine goes on.
    pub(crate) fn fail_sync_at(&self, operation: Option<u64>) {
        let mut state = self.lock();
        state.operations = 0;
        state.fail_sync_at = operation;
        state.crashed = false;
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// What a new start finds: what was synced, and of the rest what random leaves.
    pub(crate) fn after_crash(&self, random: &mut SeededRandom) -> Self {
        let state = self.lock();
        let kept = random.below(state.changes.len() as u64 + 1);
        let mut names = state.durable_names.clone();
        for change in &state.changes[..usize::try_from(kept).unwrap()] {
            apply(&mut names, change);
        }
        let sector = if state.sector == 0 { SECTOR } else { state.sector };
        let inodes = state.inodes.iter().map(|inode| inode.after_crash(sector, random)).collect();
        let after =
            State { inodes, durable_names: names.clone(), names, sector, ..State::default() };
        Self { state: Arc::new(Mutex::new(after)), weather: self.weather.clone() }
    }

    /// Sets how many bytes it holds at most.
    pub(crate) fn set_capacity(&self, capacity: Option<usize>) {
        self.lock().capacity = capacity;
    }

    /// Bytes it holds.
    pub(crate) fn used(&self) -> usize {
        self.lock().used()
    }

    /// Bytes of all files whose names begin so.
    pub(crate) fn bytes_of(&self, prefix: &str) -> u64 {
        let state = self.lock();
        let files = state.names.iter().filter(|(name, _)| name.starts_with(prefix));
        files.map(|(_, inode)| state.inodes[*inode].seen.len() as u64).sum()
    }

    /// A disk of its own with the same contents.
    pub(crate) fn copy(&self) -> Self {
        let state = Arc::new(Mutex::new(self.lock().clone()));
        Self { state, weather: self.weather.clone() }
    }

    /// Changes a file's bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let inode = state.names[name];
        let mut whole = state.inodes[inode].volatile().to_vec();
        change(&mut whole);
        state.inodes[inode] = Inode::holding(whole);
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.lock();
        state.names.remove(name).expect("there");
        state.durable_names = state.names.clone();
        state.changes.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// KeyCounts an operation; runs its effect unless the disk crashes before it.
    fn operate<T>(
        &self,
        operation: Operation,
        name: &str,
        effect: impl FnOnce(&mut State, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let dead = || io::Error::other("the simulated disk has crashed");
        if self.lock().crashed {
            return Err(dead());
        }
        let fate = self.weather.as_ref().map_or(Fate::Done, |all| all.before(operation, name));
        let mut state = self.lock();
        if state.crashed {
            return Err(dead());
        }
        match fate {
            Fate::Done => {}
            Fate::Fails => {
                // What it still did, it did to nobody's knowledge.
                drop(effect(&mut state, true));
                return Err(io::Error::other("the simulated disk fails"));
            }
            Fate::Ends { after } => {
                if after {
                    effect(&mut state, false)?;
                }
                state.crashed = true;
                return Err(dead());
            }
        }
        let now = state.operations;
        state.operations += 1;
        match state.crash_at.filter(|at| at.operation == now) {
            None => effect(&mut state, false),
            Some(CrashAt { after, .. }) => {
                if after {
                    effect(&mut state, false)?;
                }
                state.crashed = true;
                Err(dead())
            }
        }
    }
}

impl Inode {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), seen: bytes, ..Self::default() }
    }

    fn volatile(&self) -> &[u8] {
        &self.seen
    }

    fn write(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.dirty.push(change);
    }

    /// Makes what is dirty durable.
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.dirty) {
            change.apply(&mut self.durable);
        }
    }

    fn after_crash(&self, sector: usize, random: &mut SeededRandom) -> Self {
        let mut bytes = self.durable.clone();
        // A mood for each file: all lost, all kept, or each sector by itself.
        let mood = random.below(3);
        for change in &self.dirty {
            match change {
                Change::Len(_) if mood == 1 || (mood == 2 && random.below(2) == 0) => {
                    change.apply(&mut bytes);
                }
                Change::Len(_) => {}
                Change::Write(at, part) => {
                    keep_some(&mut bytes, (*at, part), (sector, mood), random);
                }
            }
        }
        Self::holding(bytes)
    }
}

fn keep_some(
    bytes: &mut Vec<u8>,
    (at, part): (usize, &[u8]),
    (sector, mood): (usize, u64),
    random: &mut SeededRandom,
) {
    let mut begin = 0;
    while begin < part.len() {
        let end = ((at + begin) / sector * sector + sector - at).min(part.len());
        if mood == 1 || (mood == 2 && random.below(2) == 0) {
            put(bytes, at + begin, &part[begin..end]);
        }
        begin = end;
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, part) => put(bytes, *at, part),
            Self::Len(len) => bytes.resize(*len, 0),
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    if bytes.len() < at + part.len() {
        bytes.resize(at + part.len(), 0);
    }
    bytes[at..at + part.len()].copy_from_slice(part);
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            let inode = names.remove(from).expect("there");
            names.insert(to.clone(), inode);
        }
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    fn used(&self) -> usize {
        self.names.values().map(|inode| self.inodes[*inode].seen.len()).sum()
    }

    /// Refuses to grow beyond what it holds.
    fn grow(&self, by: usize) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if by > 0 && self.used() + by > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.lock();
        Ok(state.inodes[state.inode(name)?].volatile().to_vec())
    }

    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = self.read(name)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.lock().inode(name)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode, name: name.into() }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.operate(Operation::Create, name, |state, fails| {
            if state.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let len = usize::try_from(len).unwrap();
            let grown = state.grow(len);
            // Where the room ends, it is there as far as it could be written.
            let there = match state.capacity {
                Some(capacity) if grown.is_err() => capacity.saturating_sub(state.used()),
                _ if fails => len / 2,
                _ => len,
            };
            let inode = state.inodes.len();
            let mut made = Inode::default();
            made.write(Change::Write(0, vec![0; there]));
            state.inodes.push(made);
            state.change(NameChange::Link(name.into(), inode));
            grown.map(|()| inode)
        })?;
        Ok(Box::new(SimFile { disk: self.clone(), inode, name: name.into() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate(Operation::Rename, to, |state, fails| {
            state.inode(from)?;
            if fails {
                return Ok(());
            }
            state.change(NameChange::Rename(from.into(), to.into()));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate(Operation::Remove, name, |state, fails| {
            state.inode(name)?;
            if fails {
                return Ok(());
            }
            state.change(NameChange::Unlink(name.into()));
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.operate(Operation::SyncDir, "", |state, fails| {
            if fails {
                return Ok(());
            }
            state.durable_names = state.names.clone();
            state.changes.clear();
            Ok(())
        })
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[self.inode].volatile().len() as u64)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        let whole = state.inodes[self.inode].volatile();
        let at = usize::try_from(at).unwrap();
        let part = whole.get(at..at + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(part);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.operate(Operation::Write, &self.name, |state, fails| {
            let bytes = if fails { &bytes[..bytes.len() / 2] } else { bytes };
            let at = usize::try_from(at).unwrap();
            let len = state.inodes[self.inode].seen.len();
            state.grow((at + bytes.len()).saturating_sub(len))?;
            state.inodes[self.inode].write(Change::Write(at, bytes.to_vec()));
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.operate(Operation::SetLen, &self.name, |state, fails| {
            if fails {
                return Ok(());
            }
            let len = usize::try_from(len).unwrap();
            state.grow(len.saturating_sub(state.inodes[self.inode].seen.len()))?;
            state.inodes[self.inode].write(Change::Len(len));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate(Operation::Sync, &self.name, |state, fails| {
            let ends = !fails && state.fail_sync_at == Some(state.operations - 1);
            let inode = &mut state.inodes[self.inode];
            if !fails && !ends {
                inode.sync();
                return Ok(());
            }
            let lost = std::mem::take(&mut inode.dirty);
            inode.phantom.extend(lost);
            state.crashed |= ends;
            Err(io::Error::other("the simulated disk failed to sync"))
        })
    }
}
