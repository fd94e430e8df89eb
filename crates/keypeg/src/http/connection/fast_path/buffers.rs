//! The buffers that all connections of one core share.

use super::writer::ResponseWriter;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The size of the read buffer in bytes, and the most unconsumed bytes of one connection.
pub(super) const READ_MAX: usize = 16 << 10;

/// The buffers of one core, shared by its connections: locked while bytes are moved, never across a
/// wait.
#[derive(Debug)]
pub(crate) struct Buffers(Mutex<BufferPair>);

#[derive(Debug)]
pub(super) struct BufferPair {
    pub(super) read: Box<[u8]>,
    pub(super) writer: ResponseWriter,
}

impl Default for Buffers {
    fn default() -> Self {
        let read = vec![0; READ_MAX].into_boxed_slice();
        Self(Mutex::new(BufferPair { read, writer: ResponseWriter::default() }))
    }
}

impl Buffers {
    pub(super) fn lock(&self) -> MutexGuard<'_, BufferPair> {
        // A poisoned lock is usable: no content outlives the request it was for.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
