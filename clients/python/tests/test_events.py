"""Event streams: events are complete wherever the chunks are cut, and end only the lease they name."""

from __future__ import annotations

import pytest

from keypeg import LeaseEnd
from keypeg._backoff import Backoff
from keypeg._events import LINE_MAX, Message, Parser, data_of, lease_end


def test_events_are_complete_wherever_the_chunks_are_cut() -> None:
    text = (
        b': hello\n\nretry: 1000\nid: 1-2\nevent: granted\ndata: {"a":1}\n\n:\n\n'
        b"id: 3\r\nevent:x\r\ndata:a\r\ndata: b\r\n\r\nid: 4\ndata: not yet\n"
    )
    expected = [Message("1-2", "granted", '{"a":1}'), Message("3", "x", "a\nb")]
    for cut in range(len(text)):
        parser = Parser()
        assert [*parser.feed(text[:cut]), *parser.feed(text[cut:])] == expected, cut


def test_an_endless_line_and_invalid_text_are_refused() -> None:
    parser = Parser()
    assert list(parser.feed(b"x" * LINE_MAX)) == []
    with pytest.raises(ValueError, match="too long"):
        list(parser.feed(b"x"))
    with pytest.raises(ValueError, match="utf-8"):
        list(Parser().feed(b"data: \xff\n"))
    for data in ("[]", "nonsense", "1"):
        with pytest.raises(ValueError, match=r"object|value"):
            data_of(Message("", "", data))


@pytest.mark.parametrize(
    ("name", "own", "later"),
    [
        ("released", LeaseEnd.RELEASED, None),
        ("quarantined", LeaseEnd.RELEASED, None),
        ("expired", LeaseEnd.EXPIRED, None),
        ("granted", None, LeaseEnd.EXPIRED),
        ("renewed", None, None),
        ("deleted", LeaseEnd.KEY_DELETED, LeaseEnd.KEY_DELETED),
        ("purged", LeaseEnd.KEY_PURGED, LeaseEnd.KEY_PURGED),
        ("restored", None, None),
    ],
)
def test_an_event_ends_the_lease_that_it_names_and_no_other(
    name: str, own: LeaseEnd | None, later: LeaseEnd | None
) -> None:
    of_key = own if name in ("deleted", "purged") else None
    assert lease_end(name, {"fencing_token": 7}, 7) is own
    assert lease_end(name, {"fencing_token": 8}, 7) is later
    # An event of an earlier lease of the same key can arrive late.
    assert lease_end(name, {"fencing_token": 6}, 7) is of_key
    assert lease_end(name, {}, 7) is of_key


def test_pauses_grow_up_to_the_maximum_and_begin_again_after_a_success() -> None:
    backoff = Backoff(0.1, 0.35)
    for expected in (0.1, 0.2, 0.35, 0.35):
        assert expected * 0.75 <= backoff.pause() <= expected
    backoff.reset()
    assert backoff.pause() <= 0.1
    assert 2.0 <= backoff.pause(2.0) <= 2.1
    assert backoff.pause(10_000.0) == 30.0
    assert Backoff(0.1, 0.01).pause() <= 0.01
