//! What is acknowledged survives: restarts, SIGKILL, power cuts, and faults of disk, memory and
//! clocks.

#[cfg(feature = "cli")]
mod backup;
mod backup_time;
mod cluster;
mod descriptors;
mod directories;
mod faults;
mod file_size;
mod kill;
mod logging;
#[cfg(feature = "cli")]
mod moving;
mod power;
mod restart;
mod sealing;
