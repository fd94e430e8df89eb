//! A disk in memory that loses unsynced data at a crash: each dirty sector independently, and all
//! changes of names from some point on. It can crash at any operation, before or after the effect.

use super::SeededRandom;
use keypeg_engine::disk::{Disk, DiskFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// The bytes that a crash keeps or loses as a whole, unless [`SimDisk::with_fault_policy`] sets
/// another size.
const SECTOR: usize = 512;

/// An operation on the disk.
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

/// The outcome of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It takes effect.
    Succeeds,
    /// It fails and has at most half of its effect; a failed sync also loses the changes that it
    /// was to make durable.
    Fails,
    /// The process or the machine ends before or after it.
    Crashes { after: bool },
}

/// Decides the outcome of each operation. It may itself use the disk while it decides.
pub(crate) trait FaultPolicy: Send + Sync {
    fn before(&self, operation: Operation, name: &str) -> Outcome;
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    /// What a reader sees: `durable`, then `phantom`, then `dirty`.
    seen: Vec<u8>,
    dirty: Vec<Change>,
    /// Written before a sync that failed: still read back, but no later sync makes it durable.
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
    /// Whether that operation still takes effect.
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
    /// Most bytes it can hold.
    capacity: Option<usize>,
    /// Bytes that a crash keeps or loses as a whole; 0 means `SECTOR`.
    sector: usize,
    crashed: bool,
}

/// The disk. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
    fault_policy: Option<Arc<dyn FaultPolicy>>,
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

    /// Creates a disk with a fault policy, whose writes tear at `sector` bytes.
    pub(crate) fn with_fault_policy(fault_policy: Arc<dyn FaultPolicy>, sector: usize) -> Self {
        let disk = Self { fault_policy: Some(fault_policy), ..Self::default() };
        disk.lock().sector = sector;
        disk
    }

    /// Ends the process that uses it: its later operations have no effect. What it wrote stays in
    /// the page cache.
    pub(crate) fn end_process(&self) {
        self.lock().crashed = true;
    }

    /// Lets the next process use it. Whether the page cache still has what a failed sync left in it
    /// is random.
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

    /// Cuts the power: the next process finds what was synced, and a random part of the rest.
    pub(crate) fn cut_power(&self, random: &mut SeededRandom) {
        let mut state = self.lock();
        state.lose_unsynced(random);
        let named: BTreeSet<_> = state.names.values().copied().collect();
        for (index, inode) in state.inodes.iter_mut().enumerate() {
            if !named.contains(&index) {
                *inode = Inode::default();
            }
        }
    }

    /// Sets when it crashes, counted from now.
    pub(crate) fn crash_at(&self, crash_at: Option<CrashAt>) {
        let mut state = self.lock();
        state.operations = 0;
        state.crash_at = crash_at;
    }

    /// Returns the operations since [`SimDisk::crash_at`] was last called.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Sets the operation, counted from now, that fails if it is a file's sync: its process ends,
    /// the machine keeps running.
    pub(crate) fn fail_sync_at(&self, operation: Option<u64>) {
        let mut state = self.lock();
        state.operations = 0;
        state.fail_sync_at = operation;
        state.crashed = false;
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Returns the disk that a new start finds: what was synced, and a random part of the rest.
    pub(crate) fn after_crash(&self, random: &mut SeededRandom) -> Self {
        let mut after = self.lock().clone();
        after.lose_unsynced(random);
        after.capacity = None;
        Self { state: Arc::new(Mutex::new(after)), fault_policy: self.fault_policy.clone() }
    }

    /// Sets the most bytes it can hold.
    pub(crate) fn set_capacity(&self, capacity: Option<usize>) {
        self.lock().capacity = capacity;
    }

    /// Returns the bytes of all files.
    pub(crate) fn used(&self) -> usize {
        self.lock().used()
    }

    /// Returns the bytes of all files whose names start with `prefix`.
    pub(crate) fn bytes_of(&self, prefix: &str) -> u64 {
        let state = self.lock();
        let files = state.names.iter().filter(|(name, _)| name.starts_with(prefix));
        files.map(|(_, inode)| state.inodes[*inode].seen.len() as u64).sum()
    }

    /// Returns a separate disk with the same contents.
    pub(crate) fn copy(&self) -> Self {
        let state = Arc::new(Mutex::new(self.lock().clone()));
        Self { state, fault_policy: self.fault_policy.clone() }
    }

    /// Changes a file's bytes directly, durably and without an operation.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let inode = state.names[name];
        let mut whole = state.inodes[inode].contents().to_vec();
        change(&mut whole);
        state.inodes[inode] = Inode::with_contents(whole);
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.lock();
        state.names.remove(name).expect("an existing name");
        state.durable_names = state.names.clone();
        state.changes.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Counts an operation, and runs its effect unless the disk crashes before it.
    fn operate<T>(
        &self,
        operation: Operation,
        name: &str,
        effect: impl FnOnce(&mut State, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let crashed = || io::Error::other("the simulated disk has crashed");
        if self.lock().crashed {
            return Err(crashed());
        }
        let fate = self
            .fault_policy
            .as_ref()
            .map_or(Outcome::Succeeds, |policy| policy.before(operation, name));
        let mut state = self.lock();
        if state.crashed {
            return Err(crashed());
        }
        match fate {
            Outcome::Succeeds => {}
            Outcome::Fails => {
                // It may still have had part of its effect, but the caller cannot know.
                drop(effect(&mut state, true));
                return Err(io::Error::other("the simulated disk fails"));
            }
            Outcome::Crashes { after } => {
                if after {
                    effect(&mut state, false)?;
                }
                state.crashed = true;
                return Err(crashed());
            }
        }
        let index = state.operations;
        state.operations += 1;
        match state.crash_at.filter(|at| at.operation == index) {
            None => effect(&mut state, false),
            Some(CrashAt { after, .. }) => {
                if after {
                    effect(&mut state, false)?;
                }
                state.crashed = true;
                Err(crashed())
            }
        }
    }
}

impl Inode {
    fn with_contents(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), seen: bytes, ..Self::default() }
    }

    fn contents(&self) -> &[u8] {
        &self.seen
    }

    fn write(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.dirty.push(change);
    }

    /// Makes dirty changes durable.
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.dirty) {
            change.apply(&mut self.durable);
        }
    }

    /// Keeps what was synced and a random part of the rest.
    fn lose_unsynced(&mut self, sector: usize, random: &mut SeededRandom) {
        // Drawn for each file.
        let survival = Survival::draw(random);
        for change in std::mem::take(&mut self.dirty) {
            match &change {
                Change::Len(_) if survival.keeps(random) => {
                    change.apply(&mut self.durable);
                }
                Change::Len(_) => {}
                Change::Write(offset, part) => {
                    keep_some(&mut self.durable, (*offset, part), (sector, survival), random);
                }
            }
        }
        self.phantom.clear();
        self.seen.clone_from(&self.durable);
    }
}

/// What survives of a file's unsynced changes.
#[derive(Clone, Copy)]
enum Survival {
    Nothing,
    Everything,
    /// Each sector independently.
    SomeSectors,
}

impl Survival {
    fn draw(random: &mut SeededRandom) -> Self {
        match random.below(3) {
            0 => Self::Nothing,
            1 => Self::Everything,
            _ => Self::SomeSectors,
        }
    }

    fn keeps(self, random: &mut SeededRandom) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::SomeSectors => random.below(2) == 0,
        }
    }
}

fn keep_some(
    bytes: &mut Vec<u8>,
    (offset, part): (usize, &[u8]),
    (sector, survival): (usize, Survival),
    random: &mut SeededRandom,
) {
    let mut start = 0;
    while start < part.len() {
        let end = ((offset + start) / sector * sector + sector - offset).min(part.len());
        if survival.keeps(random) {
            write_bytes(bytes, offset + start, &part[start..end]);
        }
        start = end;
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, part) => write_bytes(bytes, *offset, part),
            Self::Len(len) => bytes.resize(*len, 0),
        }
    }
}

fn write_bytes(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if bytes.len() < offset + part.len() {
        bytes.resize(offset + part.len(), 0);
    }
    bytes[offset..offset + part.len()].copy_from_slice(part);
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
            let inode = names.remove(from).expect("an existing name");
            names.insert(to.clone(), inode);
        }
    }
}

impl State {
    /// Cuts the power: keeps what was synced, and a random part of the rest.
    fn lose_unsynced(&mut self, random: &mut SeededRandom) {
        let surviving = random.below(self.changes.len() as u64 + 1);
        self.changes.truncate(usize::try_from(surviving).unwrap());
        for change in self.changes.drain(..) {
            apply(&mut self.durable_names, &change);
        }
        self.names.clone_from(&self.durable_names);
        let sector = if self.sector == 0 { SECTOR } else { self.sector };
        for inode in &mut self.inodes {
            inode.lose_unsynced(sector, random);
        }
        (self.operations, self.crash_at, self.fail_sync_at) = (0, None, None);
        self.crashed = false;
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    fn used(&self) -> usize {
        self.names.values().map(|inode| self.inodes[*inode].seen.len()).sum()
    }

    /// Fails if the disk cannot hold `by` more bytes.
    fn check_capacity(&self, by: usize) -> io::Result<()> {
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
        Ok(state.inodes[state.inode(name)?].contents().to_vec())
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
            let grown = state.check_capacity(len);
            // On a full disk the file exists up to the length that could be written.
            let written = match state.capacity {
                Some(capacity) if grown.is_err() => capacity.saturating_sub(state.used()),
                _ if fails => len / 2,
                _ => len,
            };
            let inode = state.inodes.len();
            let mut new = Inode::default();
            new.write(Change::Write(0, vec![0; written]));
            state.inodes.push(new);
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
        Ok(self.disk.lock().inodes[self.inode].contents().len() as u64)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        let whole = state.inodes[self.inode].contents();
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
            state.check_capacity((at + bytes.len()).saturating_sub(len))?;
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
            state.check_capacity(len.saturating_sub(state.inodes[self.inode].seen.len()))?;
            state.inodes[self.inode].write(Change::Len(len));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate(Operation::Sync, &self.name, |state, fails| {
            let ends_process = !fails && state.fail_sync_at == Some(state.operations - 1);
            let inode = &mut state.inodes[self.inode];
            if !fails && !ends_process {
                inode.sync();
                return Ok(());
            }
            let lost = std::mem::take(&mut inode.dirty);
            inode.phantom.extend(lost);
            state.crashed |= ends_process;
            Err(io::Error::other("the simulated disk failed to sync"))
        })
    }
}
