//! The HTTP layer: reads a request, calls the engine, and writes a response.
//!
//! `connection` accepts and reads, `handle` checks and admits, `route` selects one of `handlers`,
//! which use `parse` and `respond`. This file only lists the modules: none of them imports from it.

mod admit;
mod all_histories;
mod all_pools;
mod answers;
mod app;
mod backup;
mod body_memory;
mod checks;
mod connection;
mod core_turns;
mod dashboard;
mod date;
mod dispatch;
mod docs;
mod embedded;
mod error;
mod event_stream;
mod forward;
mod forwarded_answer;
mod handle;
mod handlers;
mod history;
mod kept_body;
mod lanes;
mod long_work;
mod message;
mod metrics;
mod origin;
mod parse;
mod request_log;
mod respond;
mod route;
mod sampler;
mod shutdown;
mod timeouts;
mod verified_keys;
mod watchdog;

pub(crate) use connection::descriptors::{DescriptorNeeds, raise_descriptor_limit};
pub(crate) use connection::{accept, bound_kernel_buffers};
pub(crate) use lanes::Lanes;
pub(crate) use metrics::StartInfo;
pub(crate) use timeouts::Timeouts;
