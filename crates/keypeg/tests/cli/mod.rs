//! The command line: the arguments of `serve`, the commands that call a server, and `bench`.

#[cfg(feature = "cli")]
mod bench;
#[cfg(feature = "cli")]
mod commands;
#[cfg(feature = "cli")]
mod exec;
mod serve;
