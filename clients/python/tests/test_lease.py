"""Leases of the client that blocks: what a holder gets, and how a lease ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import PATIENCE, wait_for

from keypeg import (
    Client,
    Invalid,
    InvalidInput,
    LeaseEnd,
    LeaseLost,
    NoKeyAvailable,
    UnknownPool,
    WaitEnded,
)


class LimitReached(Exception):
    pass


class KeyRevoked(Exception):
    pass


def states(client: Client, pool: str) -> list[str]:
    return sorted(key.state for key in client.keys(pool))


def test_a_lease_lends_a_value_and_gives_it_back(client: Client, pool: str) -> None:
    with client.lease(pool, holder="job 7") as lease:
        assert lease.key in (f"{pool}-a", f"{pool}-b")
        assert lease.is_held
        assert lease.lost is None
        assert 30 < lease.remaining <= 60
        key = client.key(pool, lease.key_id)
        assert key.lease is not None
        assert (key.lease.holder, key.lease.fencing_token) == ("job 7", lease.fencing_token)
        assert key.lease.granted_at == lease.granted_at
        token = lease.fencing_token
    assert not lease.is_held
    assert states(client, pool) == ["available", "available"]
    with pytest.raises(InvalidInput, match="released"):
        _ = lease.key
    with lease:
        assert lease.fencing_token > token
    lease.release()


def test_every_call_of_the_api_has_its_answer(client: Client, pool: str) -> None:
    assert client.version().name == "keypeg"
    assert client.is_ready()
    assert pool in [item.pool for item in client.pools()]
    policy = client.put_pool(pool, max_keys=5, rest_seconds=0.5, key_prefix="ci-")
    assert (policy.max_keys, policy.rest_seconds, policy.max_hold_seconds) == (5, 0.5, 3600)
    new = client.generate(pool, 2)
    assert all(key.key.startswith("ci-") for key in new)
    assert len(list(client.keys(pool))) == 4
    assert client.reveal(pool, new[0].id) == new[0].key
    kept = client.keep_alive(pool, [new[0].id, "0" * 26])
    assert (kept.kept, len(kept.missing)) == (1, 1)
    assert client.keep_alive(pool).kept == 4
    with client.lease(pool) as lease:
        verified = client.verify(pool, lease.key)
        assert (verified.active, verified.key_id, verified.state) == (True, lease.key_id, "leased")
        assert verified.lease is not None
        assert verified.lease.fencing_token == lease.fencing_token
        assert [key.id for key in client.keys(pool, "leased")] == [lease.key_id]
    assert not client.verify(pool, "no such value").active
    assert client.force_release(pool, new[1].id) in (True, False)
    client.delete_key(pool, new[1].id)
    assert client.pool(pool).total == 3
    client.delete_pool(pool)
    assert pool not in [item.pool for item in client.pools()]


def test_a_key_is_drained_quarantined_and_put_back(client: Client, pool: str) -> None:
    new = client.generate(pool, 1, label="account 7")[0]
    assert new.label == "account 7"
    assert [key.id for key in client.keys(pool, label="account 7")] == [new.id]
    assert list(client.keys(pool, "leased", label="account 7")) == []
    assert client.set_label(pool, new.id, "b&b ä").label == "b&b ä"
    assert [key.id for key in client.keys(pool, label="b&b ä")] == [new.id]
    key = client.quarantine(pool, new.id, reason="401")
    assert (key.state, key.reason, key.draining) == ("quarantined", "401", False)
    assert client.end_quarantine(pool, new.id).state == "available"
    with client.lease(pool) as lease:
        key = client.quarantine(pool, lease.key_id, when="free", reason="rotation")
        assert (key.state, key.reason, key.draining) == ("leased", "rotation", True)
        assert client.pool(pool).draining_keys == 1
        drained = lease.key_id
    assert client.key(pool, drained).state == "quarantined"


def test_a_draining_pool_grants_no_key_until_it_is_undone(client: Client, pool: str) -> None:
    with client.lease(pool) as lease:
        assert client.put_pool(pool, draining=True).draining
        with pytest.raises(NoKeyAvailable) as refused:
            client.lease(pool, wait=60).acquire()
        assert refused.value.members["cause"] == "draining"
        assert lease.is_held
    assert client.pool(pool).draining
    assert not client.put_pool(pool, draining=False).draining
    with client.lease(pool):
        pass


def test_nothing_that_is_printed_has_a_value_or_a_lease_id(client: Client, pool: str) -> None:
    lease = client.lease(pool)
    texts = [repr(lease)]
    with lease:
        grant = lease._grant
        texts += [repr(lease), repr(grant), repr(client), repr(client.key(pool, lease.key_id))]
        client.force_release(pool, lease.key_id)
        with pytest.raises(LeaseLost) as lost:
            lease.release()
        texts += [repr(lost.value), str(lost.value)]
    for text in texts:
        assert grant.key not in text
        assert grant.id not in text


def test_without_a_key_an_acquire_fails_at_once_or_after_its_wait(client: Client, pool: str) -> None:
    with client.lease(pool), client.lease(pool):
        with pytest.raises(NoKeyAvailable) as refused:
            client.lease(pool).acquire()
        assert refused.value.members["cause"] == "all_leased"
        with pytest.raises(WaitEnded) as ended:
            client.lease(pool, wait=0.2).acquire()
        assert isinstance(ended.value.last, NoKeyAvailable)
        assert isinstance(ended.value, TimeoutError)
    assert client.pool(pool).waiting == 0


def test_a_waiter_gets_the_key_that_is_released(client: Client, pool: str) -> None:
    with client.lease(pool), client.lease(pool) as second:
        values: list[str] = []

        def use() -> None:
            with client.lease(pool, wait=600) as lease:
                values.append(lease.key)

        waiter = threading.Thread(target=use)
        waiter.start()
        wait_for(lambda: client.pool(pool).waiting == 1, "a waiter")
        value = second.key
        second.release()
        waiter.join(PATIENCE)
        assert values == [value]


@pytest.mark.parametrize("follows", [False, True], ids=["by a renewal", "by an event"])
def test_a_loss_ends_a_blocking_call_of_the_main_thread(client: Client, pool: str, follows: bool) -> None:
    def lose() -> None:
        if follows:
            wait_for(lambda: _is_following(lease), "an event stream")
        client.force_release(pool, lease.key_id)

    lease = client.lease(pool)
    with pytest.raises(LeaseLost) as lost, lease:
        threading.Thread(target=lose).start()
        time.sleep(PATIENCE)
        pytest.fail("the block went on")
    assert lost.value.cause is LeaseEnd.RELEASED
    assert (lost.value.pool, lost.value.fencing_token) == (pool, lease.fencing_token)
    assert lease.lost is lost.value
    # The handler of the signal is gone with the block.
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


def _is_following(lease: Any) -> bool:
    held = lease._held
    return bool(held._followers.is_following(held))


def test_a_loss_is_raised_in_another_thread(client: Client, pool: str) -> None:
    raised: list[LeaseLost] = []

    def use() -> None:
        try:
            with client.lease(pool) as lease:
                client.force_release(pool, lease.key_id)
                deadline = time.monotonic() + PATIENCE
                while time.monotonic() < deadline:
                    time.sleep(0.001)
                return
        except LeaseLost as lost:
            raised.append(lost)
        # Nothing else is raised after the block.
        for _ in range(10_000):
            pass

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(PATIENCE)
    assert [lost.cause for lost in raised] == [LeaseEnd.RELEASED]
    assert "another client released it" in str(raised[0])


def test_a_function_gets_the_loss_and_the_block_goes_on(client: Client, pool: str) -> None:
    losses: list[LeaseLost] = []
    is_lost = threading.Event()

    def on_lost(lost: LeaseLost) -> None:
        losses.append(lost)
        is_lost.set()

    lease = client.lease(pool, on_lost=on_lost)
    with pytest.raises(LeaseLost) as raised, lease:
        client.force_release(pool, lease.key_id)
        assert is_lost.wait(PATIENCE)
        with pytest.raises(LeaseLost):
            lease.check()
        with pytest.raises(LeaseLost):
            _ = lease.key
        assert lease.remaining == 0
    assert losses == [raised.value]


def test_another_exception_leaves_the_block_with_a_note_of_the_loss(client: Client, pool: str) -> None:
    with pytest.raises(KeyRevoked) as raised, client.lease(pool, on_lost="check") as lease:
        client.force_release(pool, lease.key_id)
        raise KeyRevoked
    assert any("was lost" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    ("end", "causes"),
    [
        (lambda client, lease: client.delete_key(lease.pool, lease.key_id), {LeaseEnd.KEY_GONE}),
        (lambda client, lease: client.delete_pool(lease.pool), {LeaseEnd.POOL_DELETED}),
    ],
    ids=["key", "pool"],
)
def test_a_lease_ends_with_its_key_and_its_pool(
    client: Client, pool: str, end: Callable[[Client, Any], None], causes: set[LeaseEnd]
) -> None:
    with pytest.raises(LeaseLost) as lost, client.lease(pool) as lease:
        end(client, lease)
        time.sleep(PATIENCE)
        pytest.fail("the block went on")
    assert lost.value.cause in causes


def test_a_lease_counts_as_lost_before_its_maximum_hold_ends(client: Client, pool: str) -> None:
    client.put_pool(pool, lease_ttl_seconds=4, max_hold_seconds=4)
    with pytest.raises(LeaseLost) as lost, client.lease(pool) as lease:
        time.sleep(PATIENCE)
        pytest.fail("the block went on")
    assert lost.value.cause is LeaseEnd.MAX_HOLD
    assert lease._held is not None
    assert lease._held.usable_until < lease._held.end
    wait_for(lambda: states(client, pool) == ["available", "available"], "the end of the lease")


def test_renewals_hold_a_lease_far_longer_than_its_ttl(client: Client, pool: str) -> None:
    with client.lease(pool, ttl=5) as lease:
        assert lease._held is not None
        first = lease._held.end
        wait_for(lambda: lease._held is not None and lease._held.end > first + 1.5, "two renewals")
        assert client.key(pool, lease.key_id).state == "leased"
        lease.check()


def test_the_type_of_the_exception_decides_about_rest_and_quarantine(client: Client, pool: str) -> None:
    def run(error: BaseException | None) -> tuple[str, str | None]:
        name = f"{pool}-rest"
        client.put_pool(name, keepalive_ttl_seconds=None)
        (new,) = client.generate(name)
        lease = client.lease(
            name,
            rest_on={LimitReached: lambda error: error.args[0], ConnectionError: 30},
            quarantine_on=(KeyRevoked, PermissionError),
        )
        try:
            with lease:
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
        key = client.key(name, new.id)
        client.delete_key(name, new.id)
        return key.state, key.reason

    assert run(None) == ("available", None)
    assert run(LimitReached(60)) == ("resting", "LimitReached")
    assert run(LimitReached(None)) == ("available", None)
    assert run(ConnectionResetError("secret")) == ("resting", "ConnectionResetError")
    assert run(KeyRevoked()) == ("quarantined", "KeyRevoked")
    assert run(ValueError("other")) == ("available", None)
    assert run(KeyboardInterrupt()) == ("available", None)


def test_an_invalid_rest_is_an_error_and_the_key_is_released_all_the_same(client: Client, pool: str) -> None:
    lease = client.lease(pool).acquire()
    with pytest.raises(Invalid) as refused:
        lease.release(rest=1e9)
    assert refused.value.members["field"] == "rest_seconds"
    assert states(client, pool) == ["available", "available"]


def test_a_leased_key_is_kept_alive(client: Client, pool: str) -> None:
    name = f"{pool}-purged"
    client.put_pool(name, keepalive_ttl_seconds=6, max_hold_seconds=60)
    (new,) = client.generate(name)
    with client.lease(name) as lease:
        seen = {new.expires_at}

        def keep_alives() -> int:
            seen.add(client.key(name, lease.key_id).expires_at)
            return len(seen)

        wait_for(lambda: keep_alives() > 2, "two keep-alives")
        lease.check()


def test_a_pool_is_kept_alive_while_the_block_runs(client: Client, pool: str) -> None:
    name = f"{pool}-kept"
    client.put_pool(name, keepalive_ttl_seconds=6)
    (new,) = client.generate(name)
    with client.keeping_alive(name):
        seen = {new.expires_at}

        def keep_alives() -> int:
            seen.add(client.key(name, new.id).expires_at)
            return len(seen)

        wait_for(lambda: keep_alives() > 2, "two keep-alives")
    with pytest.raises(UnknownPool), client.keeping_alive(f"{name}-none"):
        pass


def test_many_leases_have_one_thread_and_one_event_stream(client: Client, pool: str) -> None:
    client.version()
    before = set(threading.enumerate())
    client.generate(pool, 30)
    leases = [client.lease(pool, on_lost="check").acquire() for _ in range(30)]
    wait_for(lambda: all(_is_following(lease) for lease in leases), "an event stream")
    # A thread of an earlier test can end meanwhile.
    assert set(threading.enumerate()) <= before
    assert len({id(lease._held._followers._pools[pool]) for lease in leases if lease._held}) == 1
    client.force_release(pool, leases[7].key_id)
    wait_for(lambda: leases[7].lost, "the loss")
    assert [lease.lost is None for lease in leases].count(False) == 1
    for lease in leases:
        if lease.lost is None:
            lease.release()
    assert client.pool(pool).leased == 0


def test_a_closed_client_has_released_its_leases(client: Client, pool: str) -> None:
    other = Client(client.server)
    leases = [other.lease(pool).acquire(), other.lease(pool).acquire()]
    errors: list[BaseException] = []

    def wait_long() -> None:
        try:
            other.lease(pool, wait=600).acquire()
        except InvalidInput as error:
            errors.append(error)

    waiter = threading.Thread(target=wait_long)
    waiter.start()
    wait_for(lambda: client.pool(pool).waiting == 1, "a waiter")
    other.close()
    waiter.join(PATIENCE)
    assert len(errors) == 1
    assert states(client, pool) == ["available", "available"]
    assert client.pool(pool).waiting == 0
    assert not any(lease.is_held for lease in leases)
    with pytest.raises(InvalidInput, match="closed"):
        other.version()


def script(client: Client, pool: str, text: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "KEYPEG_SERVER": client.server, "POOL": pool}
    head = "import os, time\nfrom keypeg import Client\npool = os.environ['POOL']\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + text], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_in_the_block_releases_the_key(client: Client, pool: str) -> None:
    process = script(client, pool, "with Client().lease(pool):\n    time.sleep(60)\n")
    wait_for(lambda: client.pool(pool).leased == 1, "a lease")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert states(client, pool) == ["available", "available"]


def test_ctrl_c_during_the_wait_leaves_no_waiter_and_no_lease(client: Client, pool: str) -> None:
    """The program goes on after it, so nothing is left to the end of the program."""
    text = """
client = Client()
try:
    client.lease(pool, wait=600).acquire()
except KeyboardInterrupt:
    assert client.pool(pool).waiting == 0
    os._exit(7)
"""
    with client.lease(pool), client.lease(pool):
        process = script(client, pool, text)
        wait_for(lambda: client.pool(pool).waiting == 1, "a waiter")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (7, "")
    assert states(client, pool) == ["available", "available"]


@pytest.mark.parametrize(
    "text",
    [
        "lease = Client().lease(pool).acquire()\n",
        "client = Client()\nclient.lease(pool).acquire()\nraise SystemExit(3)\n",
        "def use():\n    Client().lease(pool).acquire()\nuse()\n",
    ],
    ids=["end of the program", "SystemExit", "collected"],
)
def test_a_program_that_ends_releases_its_leases(client: Client, pool: str, text: str) -> None:
    process = script(client, pool, text)
    _, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    assert states(client, pool) == ["available", "available"]


def test_a_forked_child_leaves_the_lease_of_its_parent_and_acquires_its_own(
    client: Client, pool: str
) -> None:
    process = script(
        client,
        pool,
        """
import sys, warnings
warnings.simplefilter("ignore")
client = Client()
lease = client.lease(pool)
with lease:
    token = lease.fencing_token
    child = os.fork()
    if child == 0:
        try:
            lease.check()
            sys.exit(1)
        except Exception as error:
            assert "forked" in str(error), error
        with client.lease(pool) as own:
            assert own.fencing_token != token
        assert client.pool(pool).leased == 1
        # Leaves the block of the parent, too.
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    lease.check()
    assert client.key(pool, lease.key_id).lease.fencing_token == token
assert client.pool(pool).leased == 0
""",
    )
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"wait": -1}, "wait is -1"),
        ({"wait": float("nan")}, "wait is nan"),
        ({"ttl": 0}, "ttl is 0"),
        ({"margin": -1}, "margin is -1"),
        ({"on_lost": "ignore"}, "on_lost is 'ignore'"),
        ({"pool": "a/b"}, "invalid name"),
        ({"pool": ".."}, "invalid name"),
        ({"pool": ""}, "invalid name"),
    ],
)
def test_an_invalid_argument_is_named_before_a_request(
    client: Client, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        client.lease(**arguments)
