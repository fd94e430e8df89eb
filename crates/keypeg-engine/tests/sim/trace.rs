//! The trace of a simulation: its last lines for a reader, and a hash of all lines, which shows whether
//! two runs took the same steps.

use std::collections::VecDeque;

const TRACE_LINES: usize = 60;

/// The trace: its last lines, and a hash of all lines.
pub(crate) struct Trace {
    /// Whether lines are formatted and kept. A run without a trace takes the same steps.
    pub(crate) is_kept: bool,
    pub(crate) hash: u64,
    pub(crate) lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { is_kept: true, hash: 0xcbf2_9ce4_8422_2325, lines: VecDeque::new() }
    }

    /// Adds a line.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if !self.is_kept {
            return;
        }
        let line = line();
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.lines.len() >= TRACE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}
