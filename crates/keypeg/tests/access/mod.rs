//! What one client may do and see: tokens and their files, limits and shares of each token, the
//! audit log, and no leaked secret.

mod audit;
mod behind_proxy;
mod leaks;
mod max_leases;
mod shares;
mod token_commands;
mod token_files;
mod tokens;
