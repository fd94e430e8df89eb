//! Counts the frames that a client sends without a request: PING, SETTINGS, PRIORITY and others.
//!
//! Each takes time of the core and asks for nothing. A token bucket bounds them: it fills with time,
//! with requests and with bytes that are sent. Reads only the heads of frames (RFC 9113, 4.1); hyper
//! checks them.

use std::time::Instant;

/// The frames that a client may send in a burst.
const BURST: u64 = 1_000;
/// The frames that it may send per second.
const PER_SECOND: u64 = 100;
/// The frames that come with a request: its priority, window updates, its reset.
const PER_REQUEST: u64 = 4;
/// The bytes of responses for which a client may send a frame, such as a window update.
const BYTES_PER_FRAME: usize = 4 << 10;
/// The length of what a client sends before the first frame (RFC 9113, 3.4).
const PREFACE_LEN: usize = 24;
const HEAD_LEN: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// The position within the frames of a connection, and the frames that are still allowed.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; HEAD_LEN],
    /// The bytes of `head` that have arrived.
    head_len: usize,
    /// The bytes before the next head.
    skip: usize,
    allowed: u64,
    /// The time for which `allowed` was filled.
    filled_at: Instant,
    /// The bytes that were sent and have not filled it.
    sent: usize,
}

impl Frames {
    pub(super) fn new(now: Instant) -> Self {
        let head = [0; HEAD_LEN];
        Self { head, head_len: 0, skip: PREFACE_LEN, allowed: BURST, filled_at: now, sent: 0 }
    }

    /// Follows the next bytes; returns `false` once there are too many frames without a request.
    pub(super) fn follow(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        self.fill(now);
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD_LEN - self.head_len).min(bytes.len());
            if taken == 0 {
                return true;
            }
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len < HEAD_LEN {
                return true;
            }
            self.head_len = 0;
            let [high, middle, low, kind, ..] = self.head;
            self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if !self.count(kind) {
                return false;
            }
        }
    }

    fn count(&mut self, kind: u8) -> bool {
        match kind {
            DATA if self.skip > 0 => true,
            // hyper bounds the frames of one header list.
            CONTINUATION => true,
            HEADERS => {
                self.allowed = (self.allowed + PER_REQUEST).min(BURST);
                true
            }
            _ => {
                let is_allowed = self.allowed > 0;
                self.allowed = self.allowed.saturating_sub(1);
                is_allowed
            }
        }
    }

    /// Notes that bytes were sent.
    pub(super) fn sent(&mut self, len: usize) {
        self.sent += len;
        self.allowed = (self.allowed + (self.sent / BYTES_PER_FRAME) as u64).min(BURST);
        self.sent %= BYTES_PER_FRAME;
    }

    fn fill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.filled_at).as_secs();
        if seconds > 0 {
            self.filled_at = now;
            self.allowed = (self.allowed + seconds.saturating_mul(PER_SECOND)).min(BURST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::time::Duration;

    fn frame(kind: u8, len: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(len).unwrap().to_be_bytes();
        let mut frame = vec![high, middle, low, kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD_LEN + len, 7);
        frame
    }

    fn begun(now: Instant) -> Frames {
        let mut frames = Frames::new(now);
        assert!(frames.follow(&[b'P'; PREFACE_LEN], now));
        frames
    }

    /// Returns how many of these frames are allowed at once, up to 5 000.
    fn allowed(frames: &mut Frames, each: &[u8], now: Instant) -> usize {
        (0..5_000).take_while(|_| frames.follow(each, now)).count()
    }

    #[test]
    fn frames_without_a_request_are_bounded() {
        let now = clock::stopwatch();
        for (kind, len) in [(6, 8), (4, 0), (3, 4), (2, 5), (8, 4), (0, 0), (0xee, 100)] {
            assert_eq!(allowed(&mut begun(now), &frame(kind, len), now), 1_000, "kind {kind}");
        }
        let frames = &mut begun(now);
        assert!((0..1_000).all(|_| frames.follow(&frame(6, 8), now)));
        let later = now + Duration::from_millis(2_500);
        assert_eq!(allowed(frames, &frame(6, 8), later), 200, "time fills the bucket");
    }

    #[test]
    fn requests_their_bodies_and_what_comes_with_them_are_not() {
        let now = clock::stopwatch();
        for (kind, len) in [(0, 1), (0, 16_384), (1, 100), (9, 100)] {
            assert_eq!(allowed(&mut begun(now), &frame(kind, len), now), 5_000, "kind {kind}");
        }
        let request = [frame(1, 50), frame(8, 4), frame(8, 4), frame(3, 4)].concat();
        assert_eq!(allowed(&mut begun(now), &request, now), 5_000);
        let frames = &mut begun(now);
        for _ in 0..5_000 {
            frames.sent(BYTES_PER_FRAME);
            assert!(frames.follow(&frame(8, 4), now), "a window update of a download");
        }
    }

    #[test]
    fn frames_are_found_wherever_the_bytes_are_cut() {
        let now = clock::stopwatch();
        let bytes = [vec![b'P'; PREFACE_LEN], frame(4, 12), frame(1, 300), frame(6, 8)].concat();
        for cut in 0..bytes.len() {
            let mut frames = Frames::new(now);
            assert!(frames.follow(&bytes[..cut], now) && frames.follow(&bytes[cut..], now));
            assert_eq!((frames.allowed, frames.skip, frames.head_len), (999, 0, 0), "cut at {cut}");
        }
    }
}
