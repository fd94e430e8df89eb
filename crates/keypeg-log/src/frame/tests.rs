//! Frames as bytes: their layout, and each kind of damage.

use super::*;

const SHARD: Shard = Shard::new(3);
const AFTER: Tail = Tail { position: 6, id: FrameId::new([7; 16]) };

fn frame() -> Frame {
    let id = FrameId::new([9; 16]);
    Frame::new(SHARD, AFTER, id, FrameKind::Takeover, b"hello").unwrap()
}

#[test]
fn a_frame_is_read_as_it_was_written() {
    let frame = frame();
    let read = Frame::decode(SHARD, 7, frame.bytes().clone()).unwrap();
    assert_eq!(read, frame);
    assert_eq!((read.position(), read.kind()), (7, FrameKind::Takeover));
    assert_eq!((read.after(), &read.payload()[..]), (AFTER, &b"hello"[..]));
    let head = [b"KPL1\x03\0\x02\0\x07\0\0\0\0\0\0\0".as_slice(), &[9; 16], &[7; 16]].concat();
    assert_eq!(&read.bytes()[..48], head);
    assert_eq!(&read.bytes()[48..56], [5, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn each_changed_bit_of_a_frame_is_found() {
    let frame = frame();
    for bit in 0..frame.bytes().len() * 8 {
        let mut bytes = frame.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = Frame::decode(SHARD, 7, bytes.into()).unwrap_err();
        assert!(matches!(error, LogError::Damaged { position: 7, .. }), "bit {bit}: {error}");
    }
    for len in 0..frame.bytes().len() {
        assert!(Frame::decode(SHARD, 7, frame.bytes().slice(..len)).is_err(), "{len} bytes");
    }
}

#[test]
fn a_frame_in_the_place_of_another_is_found() {
    let bytes = frame().bytes().clone();
    assert!(Frame::decode(Shard::new(4), 7, bytes.clone()).is_err());
    assert!(Frame::decode(SHARD, 8, bytes).is_err());
}

#[test]
fn a_gap_and_a_fork_in_a_chain_are_found() {
    let next = |after: Tail, id: u8| {
        Frame::new(SHARD, after, FrameId::new([id; 16]), FrameKind::Turn, b"").unwrap()
    };
    let first = next(Tail::EMPTY, 1);
    let second = next(first.tail(), 2);
    let third = next(second.tail(), 3);
    let fork = next(Tail { position: 2, id: FrameId::new([8; 16]) }, 4);
    let check = |frames: &[&Frame]| {
        let frames: Vec<Frame> = frames.iter().map(|frame| (*frame).clone()).collect();
        Frame::check_chain(SHARD, Tail::EMPTY, &frames)
    };
    assert_eq!(check(&[&first, &second, &third]), Ok(third.tail()));
    assert_eq!(
        check(&[&first, &third]),
        Err(LogError::Hole { shard: SHARD, missing: 2, found: 3 })
    );
    assert!(matches!(check(&[&first, &second, &fork]), Err(LogError::Damaged { position: 3, .. })));
}

#[test]
fn a_payload_over_the_limit_is_refused_with_the_limit() {
    let payload = vec![0; PAYLOAD_MAX + 1];
    let error = Frame::new(SHARD, AFTER, FrameId::new([1; 16]), FrameKind::Turn, &payload);
    let text = error.unwrap_err().to_string();
    assert_eq!(text, "a frame has 67108865 bytes; at most 67108864 are allowed");
}
