//! The pages that explain the error codes, rendered from one table of texts.

pub mod markdown;
