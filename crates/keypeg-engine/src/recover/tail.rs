//! The scan of a segment behind its last complete batch: whether bytes were written there, and
//! which positions the complete frames among them prove durable.
//!
//! The work is linear in the bytes, whatever they are. Values that clients chose may look like
//! frames, so the identity of a frame, which no client knows, is compared before its CRC.

use crate::frame::{ALIGN, BatchHead, UncheckedFrame};
use keypeg_core::Lsn;

/// How often the bytes may be covered by CRCs. Frames never overlap: complete ones cover each byte
/// once, and the one batch that a crash may tear covers each byte once more.
const COVERED_MAX: usize = 2;

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TailScan {
    /// Whether any byte is not zero.
    pub(super) is_torn: bool,
    /// The highest position that a complete frame records as durable.
    pub(super) synced_through: Lsn,
    /// Whether frames overlap, which no crash leaves. The scan ended there.
    pub(super) overlaps: bool,
    /// Bytes that CRCs were computed over.
    checked_bytes: usize,
}

/// Scans `bytes` at each place where a frame can begin; `is_ours` says whether a frame is of this
/// installation and segment. O(bytes).
pub(super) fn scan(bytes: &[u8], is_ours: impl Fn(&BatchHead) -> bool) -> TailScan {
    let mut scan = TailScan::default();
    for (index, word) in bytes.chunks(ALIGN).enumerate() {
        if word.iter().all(|byte| *byte == 0) {
            continue;
        }
        scan.is_torn = true;
        let frame = UncheckedFrame::read(&bytes[index * ALIGN..]);
        let Some(frame) = frame.filter(|frame| is_ours(&frame.head)) else { continue };
        if scan.checked_bytes + frame.checked_len() > COVERED_MAX * bytes.len() {
            scan.overlaps = true;
            return scan;
        }
        scan.checked_bytes += frame.checked_len();
        if let Some(frame) = frame.checked() {
            scan.synced_through = scan.synced_through.max(frame.head.synced_through);
        }
    }
    scan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{BATCH_HEAD, SegmentNumber};

    const OURS: BatchHead = BatchHead {
        installation: 7 << 100,
        segment: SegmentNumber(3),
        lsn: Lsn(9),
        synced_through: Lsn(8),
        lease_us: 5,
    };

    fn is_ours(head: &BatchHead) -> bool {
        (head.installation, head.segment) == (OURS.installation, OURS.segment)
    }

    fn frame(head: &BatchHead, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        head.write(body, &mut bytes);
        bytes
    }

    /// Returns the header of a frame whose body would reach to the end of `len` bytes.
    fn far_header(head: &BatchHead, len: usize) -> Vec<u8> {
        let mut header = frame(head, b"")[..BATCH_HEAD].to_vec();
        let body = u32::try_from(len.saturating_sub(BATCH_HEAD)).expect("a test is small");
        header[8..12].copy_from_slice(&body.to_le_bytes());
        header
    }

    /// A torn batch whose values were headers of frames took a minute to recover: a CRC of nearly
    /// the whole segment was computed at each of them.
    #[test]
    fn values_that_look_like_frames_cost_no_checksum() {
        let foreign = BatchHead { installation: 0, ..OURS };
        let other_segment = BatchHead { segment: SegmentNumber(2), ..OURS };
        for head in [foreign, other_segment] {
            let mut bytes = Vec::new();
            while bytes.len() < 1 << 20 {
                bytes.extend(far_header(&head, (1 << 20) - bytes.len()));
            }
            let scan = scan(&bytes, is_ours);
            let expected = TailScan { is_torn: true, ..TailScan::default() };
            assert_eq!(scan, expected, "{} headers", bytes.len() / BATCH_HEAD);
        }
        let magic = b"KPGB".repeat(1 << 18);
        assert_eq!(scan(&magic, is_ours).checked_bytes, 0);
    }

    /// Headers with the identity of this segment and lengths that point far, as no client and no
    /// crash writes them: the scan stops when frames overlap.
    #[test]
    fn overlapping_frames_of_this_segment_end_the_scan_after_linear_work() {
        let mut bytes = Vec::new();
        while bytes.len() < 1 << 20 {
            bytes.extend(far_header(&OURS, (1 << 20) - bytes.len()));
        }
        let scan = scan(&bytes, is_ours);
        assert!(scan.overlaps && scan.checked_bytes <= COVERED_MAX * bytes.len(), "{scan:?}");
    }

    #[test]
    fn many_tiny_frames_and_a_torn_one_are_each_checked_once() {
        let mut bytes = frame(&OURS, b"torn before its end");
        bytes[BATCH_HEAD] ^= 1;
        let torn = bytes.len();
        for lsn in 10..10_000 {
            bytes
                .extend(frame(&BatchHead { lsn: Lsn(lsn), synced_through: Lsn(lsn), ..OURS }, b""));
        }
        let complete = bytes.len() - torn;
        // A header whose length reaches to the last byte covers all of them once more.
        let mut covering = far_header(&OURS, BATCH_HEAD + bytes.len());
        covering.extend(&bytes);
        for (bytes, more) in [(&bytes, 0), (&covering, covering.len())] {
            let scan = scan(bytes, is_ours);
            let checked_bytes = more + complete + BATCH_HEAD + b"torn before its end".len();
            let expected = TailScan {
                is_torn: true,
                synced_through: Lsn(9_999),
                overlaps: false,
                checked_bytes,
            };
            assert_eq!(scan, expected);
        }
        assert_eq!(scan(&[0; 4_096], is_ours), TailScan::default());
    }
}
