"""Errors: a class for each code of the server, also for codes that this version does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

import keypeg
from keypeg import Client, Internal, InvalidInput, KeypegError, Refused, Unauthorized, UnknownPool


def codes() -> list[str]:
    document = json.loads((ROOT / "docs/openapi.json").read_text())
    return list(document["components"]["schemas"]["Code"]["enum"])


@pytest.mark.parametrize("code", codes())
def test_each_code_of_the_server_has_a_public_class_with_a_next_step(code: str) -> None:
    error = Refused.of({"code": code, "status": 400, "detail": "Why.", "field": "count"}, None)
    kind = type(error)
    assert kind is not Refused, code
    assert getattr(keypeg, kind.__name__) is kind
    assert kind.next_step.endswith(".")
    assert kind.next_step != Refused.next_step
    assert (error.code, error.members) == (code, {"field": "count"})
    assert str(error) == f"Why. (status 400, {code})"


def test_no_class_has_a_code_that_the_server_does_not_have() -> None:
    assert set(Refused._classes) == set(codes())


def test_every_public_name_exists_and_is_sorted() -> None:
    assert sorted(keypeg.__all__) == list(keypeg.__all__)
    for name in keypeg.__all__:
        assert hasattr(keypeg, name)


def test_an_unknown_code_stays_usable() -> None:
    error = Refused.of(
        {"code": "new_code", "status": 503, "detail": "New.", "limit": 7, "outcome": "not_applied"}, 2.0
    )
    assert type(error) is Refused
    assert (error.code, error.status, error.outcome) == ("new_code", 503, "not_applied")
    assert (error.members, error.retry_after) == ({"limit": 7}, 2.0)
    assert error.is_temporary
    assert error.docs == "/problems/new_code"


@pytest.mark.parametrize("body", [{}, [], {"code": 1, "status": 1, "detail": ""}, {"code": "x"}, None])
def test_a_body_that_is_no_problem_is_refused(body: object) -> None:
    with pytest.raises((KeyError, TypeError)):
        Refused.of(body, None)  # type: ignore[arg-type]


def test_a_refusal_has_what_the_server_sent(client: Client) -> None:
    with pytest.raises(UnknownPool) as refused:
        client.pool("nowhere")
    error = refused.value
    assert (error.status, error.code, error.title) == (404, "unknown_pool", "No such pool")
    assert error.request_id
    assert error.outcome is None
    with pytest.raises(UnknownPool) as change:
        client.lease("nowhere").acquire()
    assert change.value.outcome == "not_applied"


def test_all_errors_have_one_base() -> None:
    for name in keypeg.__all__:
        kind = getattr(keypeg, name)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            assert issubclass(kind, KeypegError)
    assert issubclass(InvalidInput, ValueError)
    assert Refused.of({"code": "internal", "status": 500, "detail": ""}, None).is_temporary
    assert isinstance(Refused.of({"code": "internal", "status": 500, "detail": ""}, None), Internal)
    assert not Refused.of({"code": "unauthorized", "status": 401, "detail": ""}, None).is_temporary
    assert issubclass(Unauthorized, Refused)


def test_the_classes_are_documented() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    for name in ("LeaseLost", "NoKeyAvailable", "WaitEnded", "Unreachable", "Refused"):
        assert f"`{name}`" in text
