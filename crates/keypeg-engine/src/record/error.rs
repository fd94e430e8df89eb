//! Why bytes are not a valid record.

/// Why bytes are not a valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordError(pub(crate) &'static str);

pub(super) const TRUNCATED: RecordError = RecordError("a record is truncated");
pub(super) const NUMBER_OUT_OF_RANGE: RecordError =
    RecordError("a number in a record is out of range");
pub(super) const INSTANT_OUT_OF_RANGE: RecordError =
    RecordError("a time in a record is out of range");
