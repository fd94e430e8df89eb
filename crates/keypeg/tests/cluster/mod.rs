//! Several servers that share their pools: a client may ask any of them.
//!
//! The servers run in this process on naive stores, so a test can move a shard at a chosen moment.

mod double;
mod forwarding;
