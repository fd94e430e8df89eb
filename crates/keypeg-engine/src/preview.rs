//! A disk over another that keeps every change in memory: what a start would do, without doing it.
//!
//! Only what a start does is supported well: changes are kept in blocks, and are gone with it.

use crate::disk::{Disk, DiskFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const BLOCK: u64 = 4096;

/// A disk that changes nothing of the one below it.
pub(crate) struct Preview {
    below: Arc<dyn Disk>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// Files that were made, opened to be changed, or renamed here.
    ours: BTreeMap<String, Arc<Overlay>>,
    /// Names of the disk below that are gone here.
    gone: BTreeSet<String>,
}

/// A file with its changed blocks.
struct Overlay {
    below: Option<Box<dyn DiskFile>>,
    state: Mutex<Blocks>,
}

struct Blocks {
    length: u64,
    /// The part of the file below that still counts.
    below_length: u64,
    changed: BTreeMap<u64, Vec<u8>>,
}

impl Preview {
    pub(crate) fn over(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::default() }
    }

    fn file(&self, name: &str) -> io::Result<Arc<Overlay>> {
        let mut names = locked(&self.names);
        if let Some(file) = names.ours.get(name) {
            return Ok(Arc::clone(file));
        }
        if names.gone.contains(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = self.below.open(name)?;
        let length = below.length()?;
        let file = Arc::new(Overlay::new(Some(below), length));
        names.ours.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

impl Disk for Preview {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = locked(&self.names);
        let mut listed: BTreeSet<String> = names.ours.keys().cloned().collect();
        listed.extend(self.below.list()?.into_iter().filter(|name| !names.gone.contains(name)));
        Ok(listed.into_iter().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_or(len, |all| all.min(len))];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.file(name)?))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        if self.list()?.iter().any(|there| there == name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(Overlay::new(None, len));
        locked(&self.names).ours.insert(name.to_owned(), Arc::clone(&file));
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let file = self.file(from)?;
        let mut names = locked(&self.names);
        names.ours.remove(from);
        names.gone.insert(from.to_owned());
        names.ours.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        let mut names = locked(&self.names);
        names.ours.remove(name);
        names.gone.insert(name.to_owned());
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Overlay {
    fn new(below: Option<Box<dyn DiskFile>>, length: u64) -> Self {
        let below_length = if below.is_some() { length } else { 0 };
        let state = Mutex::new(Blocks { length, below_length, changed: BTreeMap::new() });
        Self { below, state }
    }

    /// One block as it is: what was changed here, over what is below, over zeros.
    fn block(&self, state: &Blocks, number: u64) -> io::Result<Vec<u8>> {
        if let Some(block) = state.changed.get(&number) {
            return Ok(block.clone());
        }
        let mut block = vec![0; usize::try_from(BLOCK).map_err(io::Error::other)?];
        let at = number * BLOCK;
        if let Some(below) = &self.below
            && at < state.below_length
        {
            let len = BLOCK.min(state.below_length - at);
            below.read_at(at, &mut block[..usize::try_from(len).map_err(io::Error::other)?])?;
        }
        Ok(block)
    }

    /// Walks over the blocks that `len` bytes from `at` on touch: number, range within the block,
    /// and where the bytes begin.
    fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let from = at + done as u64;
            let within = usize::try_from(from % BLOCK).ok()?;
            let part = (len - done).min(usize::try_from(BLOCK).ok()? - within);
            let piece = (from / BLOCK, within..within + part, done);
            done += part;
            (part > 0).then_some(piece)
        })
    }
}

impl DiskFile for Arc<Overlay> {
    fn length(&self) -> io::Result<u64> {
        Ok(locked(&self.state).length)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let state = locked(&self.state);
        if at + bytes.len() as u64 > state.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, range, begin) in Overlay::pieces(at, bytes.len()) {
            let block = self.block(&state, number)?;
            bytes[begin..begin + range.len()].copy_from_slice(&block[range]);
        }
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = locked(&self.state);
        for (number, range, begin) in Overlay::pieces(at, bytes.len()) {
            let mut block = self.block(&state, number)?;
            let len = range.len();
            block[range].copy_from_slice(&bytes[begin..begin + len]);
            state.changed.insert(number, block);
        }
        state.length = state.length.max(at + bytes.len() as u64);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = locked(&self.state);
        if len < state.length {
            // The cut block's end must read as zeros if the file grows again.
            let mut block = self.block(&state, len / BLOCK)?;
            block[usize::try_from(len % BLOCK).map_err(io::Error::other)?..].fill(0);
            state.changed.split_off(&(len / BLOCK));
            state.changed.insert(len / BLOCK, block);
            state.below_length = state.below_length.min(len);
        }
        state.length = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
