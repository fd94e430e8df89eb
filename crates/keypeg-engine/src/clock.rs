//! The engine's source of time, as an argument: the server reads the system's clocks, a test moves
//! its own.
//!
//! `times.rs` derives from it the two clocks that decide.

/// The engine's source of time.
pub trait Clock: Send {
    /// Reads both clocks now.
    fn read(&mut self) -> ClockReading;
}

/// One reading of the machine's clocks, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The time since boot, including suspend.
    pub boot_us: u64,
    /// The id of this boot.
    pub boot_id: u128,
    /// Wall time since 1970-01-01 UTC. It is only displayed and decides nothing.
    pub wall_us: u64,
}
