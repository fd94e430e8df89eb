//! Several servers that share their pools: a client may ask any of them.
//!
//! The servers run in this process on naive stores, so a test can move a shard at a chosen moment. Those
//! of `descriptors`, `https`, `tokens` and `stores` are real processes, on a directory and on an S3 double.

mod descriptors;
mod double;
mod forwarding;
mod https;
mod shards;
mod stores;
mod tokens;
