//! The command line: the arguments of `serve`, the commands that call a server, and `bench`.

#[cfg(feature = "cli")]
mod bench;
#[cfg(feature = "cli")]
mod commands;
#[cfg(feature = "cli")]
mod events;
#[cfg(feature = "cli")]
mod exec;
#[cfg(feature = "cli")]
mod health;
#[cfg(feature = "cli")]
mod import;
#[cfg(feature = "cli")]
mod import_options;
#[cfg(feature = "cli")]
mod manual;
#[cfg(feature = "cli")]
mod output;
#[cfg(feature = "cli")]
mod pools;
#[cfg(feature = "cli")]
mod proxy;
mod serve;
mod store;
mod supervisor;
#[cfg(feature = "cli")]
mod terminal;
#[cfg(feature = "cli")]
mod tool;
