//! What is acknowledged survives: restarts, SIGKILL, power cuts, and faults of disk, memory and
//! clocks.

mod directories;
mod faults;
mod kill;
mod power;
mod restart;
