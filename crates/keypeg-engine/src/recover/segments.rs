//! The list of segments of a journal, as a start finds them on the disk.
//!
//! It reads the headers only and refuses a gap; the batches are replayed by `recover.rs`.

use crate::disk::Disk;
use crate::frame::{BadHead, FORMAT, SEGMENT_HEAD, SegmentHead, SegmentNumber};
use crate::journal::SegmentInfo;
use crate::layout::{TEMPORARY, file_name, parse_file_name};
use crate::start::{StartError, corrupt, io, missing};

/// A segment that was preallocated and never used.
#[derive(Clone, Copy)]
pub(super) struct UnusedSegment {
    pub(super) number: SegmentNumber,
    /// Its length in bytes.
    pub(super) len: u64,
    /// Whether all its bytes are zero.
    pub(super) is_zero: bool,
}

/// The segments of a journal.
pub(super) struct Segments {
    /// The headers of the segments that have one, in order.
    pub(super) heads: Vec<SegmentHead>,
    /// All segments up to the last one with a header.
    pub(super) all: Vec<SegmentInfo>,
    /// The preallocated segments after that one.
    pub(super) unused: Vec<UnusedSegment>,
    /// The preallocated segments after a gap: an interrupted start has renamed the segment before
    /// them to its temporary name.
    pub(super) stranded: Vec<SegmentNumber>,
}

/// Reads the headers of all segments; a gap between them is an error.
pub(super) fn segments(disk: &dyn Disk, installation: u128) -> Result<Segments, StartError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| parse_file_name(name)).collect();
    numbers.sort_unstable();
    let (mut heads, mut all) = (Vec::new(), Vec::new());
    // A segment without a header was never used, or the disk failed when it was started. If batches
    // of it are missing, the next segment does not start where the one before ends: an error then.
    let mut without_head: Vec<UnusedSegment> = Vec::new();
    let mut stranded = Vec::new();
    let mut expected = numbers.first().copied().unwrap_or(SegmentNumber::FIRST);
    for number in &numbers {
        if *number != expected {
            // A start gives a preallocated segment a temporary name until it is complete. If the
            // start is interrupted, there is a gap before the other preallocated segments.
            let temporary = format!("{}{TEMPORARY}", file_name(expected));
            let after_gap = numbers.iter().copied().filter(|after| after >= number);
            let mut is_used = false;
            for after in after_gap.clone() {
                is_used |= matches!(read_head(disk, installation, after)?, Found::Head(_));
            }
            if is_used || !names.contains(&temporary) {
                return Err(missing(&file_name(expected)));
            }
            stranded.extend(after_gap);
            break;
        }
        expected = expected.next();
        let number = *number;
        let len = disk.open(&file_name(number)).and_then(|file| file.length());
        let len = len.map_err(io(&file_name(number)))?;
        match read_head(disk, installation, number)? {
            Found::Unused { is_zero } => without_head.push(UnusedSegment { number, len, is_zero }),
            Found::Head(head) => {
                let starts_at = head.starts_at;
                let empty = without_head.drain(..);
                all.extend(empty.map(|UnusedSegment { number, len, .. }| SegmentInfo {
                    number,
                    starts_at,
                    len,
                }));
                all.push(SegmentInfo { number, starts_at, len });
                heads.push(head);
            }
        }
    }
    Ok(Segments { heads, all, unused: without_head, stranded })
}

/// What a segment begins with.
enum Found {
    Head(SegmentHead),
    /// No header, and nothing after its place: the segment was never used.
    Unused {
        /// Whether the place of the header is zero too.
        is_zero: bool,
    },
}

/// Reads the header of a segment.
fn read_head(
    disk: &dyn Disk,
    installation: u128,
    segment: SegmentNumber,
) -> Result<Found, StartError> {
    let name = file_name(segment);
    let bytes = disk.read_head(&name, SEGMENT_HEAD).map_err(io(&name))?;
    match SegmentHead::read(&bytes) {
        Ok(head) if head.installation == installation && head.segment == segment => {
            Ok(Found::Head(head))
        }
        Ok(_) => Err(corrupt(&name, 0, "it belongs to another data directory or file name")),
        Err(BadHead::Newer(format)) => Err(StartError::Corrupt(format!(
            "{name} has format {format}, and this version of keypeg reads formats up to {FORMAT}: \
             use a newer version of keypeg. Nothing was changed"
        ))),
        Err(BadHead::Unused | BadHead::Damaged) => {
            let bytes = disk.read(&name).map_err(io(&name))?;
            let (head, rest) = bytes.split_at(SEGMENT_HEAD.min(bytes.len()));
            if !is_zero(rest) {
                return Err(corrupt(&name, 0, "the segment header is damaged"));
            }
            Ok(Found::Unused { is_zero: is_zero(head) })
        }
    }
}

/// Returns whether all bytes are zero. It compares blocks, for which the compiler uses vectors: a
/// start looks at all preallocated segments.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4_096).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}
