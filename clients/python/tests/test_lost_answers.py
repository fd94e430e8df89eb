"""Answers that are lost, servers that restart, and calls that are cancelled: no lease is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from conftest import DELAY, PATIENCE, Proxy, Server, wait_for

from keypeg import (
    AsyncClient,
    Client,
    KeypegError,
    LeaseEnd,
    LeaseLost,
    NoKeyAvailable,
    UnexpectedAnswer,
    Unreachable,
    WaitEnded,
    _clock,
)
from keypeg._acquire import Acquire
from keypeg._http import Http
from keypeg._settings import Settings, TlsFiles

ACQUIRE = r"POST /v1/pools/ci/leases "
RELEASE = r"POST /v1/pools/ci/leases/[^ ]+/release "
RENEW = r"POST /v1/pools/ci/leases/[^ ]+/renew "


@pytest.fixture
def direct(server: Server) -> Client:
    """A client beside the proxy; the pool `ci` has two keys."""
    client = Client(server.url)
    client.put_pool("ci", max_hold_seconds=3600, keepalive_ttl_seconds=None)
    client.import_values("ci", ["a", "b"])
    return client


@pytest.mark.parametrize("wait", [0, 20])
def test_the_repeat_of_a_lost_answer_gets_the_same_lease(direct: Client, proxy: Proxy, wait: float) -> None:
    proxy.loses = ACQUIRE
    lost: list[KeypegError] = []

    def on_retry(error: KeypegError) -> None:
        lost.append(error)
        proxy.loses = ""

    def stop() -> None:
        wait_for(lambda: proxy.lost, "a lost answer")
        proxy.loses = ""

    threading.Thread(target=stop).start()
    with Client(proxy.url) as client, client.lease("ci", wait=wait, on_retry=on_retry) as lease:
        assert proxy.lost >= 1
        assert direct.pool("ci").leased == 1
        held = direct.key("ci", lease.key_id).lease
        assert held is not None
        assert held.fencing_token == lease.fencing_token
    assert direct.pool("ci").leased == 0


def test_a_server_that_never_answers_leaves_no_lease_for_long(direct: Client, proxy: Proxy) -> None:
    proxy.loses = ACQUIRE
    with Client(proxy.url) as client, pytest.raises(WaitEnded) as ended:
        client.lease("ci", wait=0.5).acquire()
    assert isinstance(ended.value.last, Unreachable)
    assert ended.value.last.was_sent
    # One lease at most, however often the request was repeated.
    assert proxy.lost > 2
    assert direct.pool("ci").leased <= 1


def test_a_refused_connection_is_an_error_at_once_that_names_the_server(proxy: Proxy) -> None:
    proxy.close()
    with Client(proxy.url) as client:
        with pytest.raises(Unreachable) as error:
            client.lease("ci").acquire()
        assert not error.value.was_sent
        assert str(error.value) == f"the server at {proxy.url} cannot be reached: Connection refused"
        with pytest.raises(WaitEnded) as ended:
            client.lease("ci", wait=0.3).acquire()
        assert isinstance(ended.value.last, Unreachable)


def test_a_lost_answer_to_a_release_is_no_loss(direct: Client, proxy: Proxy) -> None:
    with Client(proxy.url) as client, client.lease("ci"):
        proxy.loses = RELEASE

        def stop() -> None:
            wait_for(lambda: proxy.lost, "a lost answer")
            proxy.loses = ""

        threading.Thread(target=stop).start()
    assert proxy.lost >= 1
    assert direct.pool("ci").leased == 0


def test_a_wait_and_a_lease_survive_a_kill_of_the_server(
    direct: Client, proxy: Proxy, server: Server
) -> None:
    retries: list[KeypegError] = []
    values: list[str] = []

    def use() -> None:
        with Client(proxy.url) as own, own.lease("ci", wait=600, on_retry=retries.append) as lease:
            values.append(lease.key)

    with Client(proxy.url) as client, client.lease("ci") as first, client.lease("ci") as second:
        waiter = threading.Thread(target=use)
        waiter.start()
        wait_for(lambda: direct.pool("ci").waiting == 1, "a waiter")
        proxy.upstream = None
        server.kill()
        proxy.cut()
        wait_for(lambda: len(retries) > 2, "attempts without a server")
        server.start()
        proxy.upstream = server.port
        with Client(server.url) as again:
            wait_for(lambda: again.pool("ci").waiting == 1, "a waiter after the restart")
            first.check()
            second.check()
            assert again.pool("ci").leased == 2
        value = second.key
        second.release()
        waiter.join(PATIENCE)
        assert values == [value]


def test_a_release_waits_for_a_server_that_restarts(direct: Client, proxy: Proxy, server: Server) -> None:
    with Client(proxy.url) as client:
        lease = client.lease("ci").acquire()
        proxy.upstream = None
        server.kill()
        proxy.cut()
        release = threading.Thread(target=lease.release)
        release.start()
        server.start()
        proxy.upstream = server.port
        release.join(PATIENCE)
    with Client(server.url) as again:
        assert again.pool("ci").leased == 0


def test_renewals_without_an_answer_end_the_lease_before_its_time(direct: Client, proxy: Proxy) -> None:
    with Client(proxy.url) as client:
        lease = client.lease("ci", ttl=4)
        with pytest.raises(LeaseLost) as lost, lease:
            held = lease._held
            proxy.holds = RENEW
            time.sleep(PATIENCE)
            pytest.fail("the block went on")
        assert lost.value.cause is LeaseEnd.NOT_RENEWED
        assert held is not None
        assert 1 <= len(held._attempts) <= 4
        key = direct.key("ci", lease.key_id)
        assert key.lease is None or key.lease.fencing_token == lease.fencing_token


def test_a_lease_counts_from_the_sending_of_its_request(direct: Client, proxy: Proxy) -> None:
    """An answer that is late must not make the lease end later here than on the server."""
    proxy.delays = r"POST /v1/pools/ci/leases"
    with Client(proxy.url) as client, client.lease("ci") as lease:
        held = lease._held
        assert held is not None
        assert held.end - 60 <= _clock.now() - DELAY
        end = held.end
        wait_for(lambda: held.end > end, "a renewal")
        assert held.end - 60 <= _clock.now() - DELAY


def test_a_lease_whose_time_passed_during_a_suspend_is_lost_at_once(
    direct: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspend stops the timers of the client, and not the clock of its leases."""
    lost: list[LeaseLost] = []
    direct.put_pool("ci", lease_ttl_seconds=600)
    with Client(proxy.url) as client:
        lease = client.lease("ci", on_lost=lost.append).acquire()
        held = lease._held
        assert held is not None
        # While the lease follows the events, the next renewal is far away.
        wait_for(lambda: held.next_at > _clock.now() + 2 * PATIENCE, "a renewal with an event stream")
        real = _clock.now
        lease.check()
        monkeypatch.setattr(_clock, "now", lambda: real() + 601)
        with pytest.raises(LeaseLost):
            _ = lease.key
        # The watch of the clock ends the lease, long before its next renewal or the end by a timer.
        wait_for(lambda: lost, "the report of the loss")


def test_a_repeat_keeps_the_place_in_the_wait_queue(direct: Client, server: Server) -> None:
    """The first waiter repeats its request three times before the second one is served."""

    async def run() -> list[str]:
        http = Http(Settings(server.url, None, None, TlsFiles(None, None, None)), 60)
        order: list[str] = []

        async def use(name: str, acquire: Acquire) -> None:
            sent = await acquire.run()
            order.append(name)
            await http.call("POST", f"/v1/pools/ci/leases/{sent.grant.id}/release")

        async def until(condition: Callable[[], Awaitable[bool]]) -> None:
            async with asyncio.timeout(PATIENCE):
                while not await condition():
                    await asyncio.sleep(0.01)

        async def is_waiting(number: int) -> bool:
            return bool((await http.call("GET", "/v1/pools/ci"))["waiting"] == number)

        async def has_repeated() -> bool:
            return repeating.attempts > 3

        repeating = Acquire(http, "ci", ttl=None, holder=None, wait=600, repeat_at=0.001)
        first = asyncio.create_task(use("first", repeating))
        await until(lambda: is_waiting(1))
        second = asyncio.create_task(use("second", Acquire(http, "ci", ttl=None, holder=None, wait=600)))
        await until(lambda: is_waiting(2))
        await until(has_repeated)
        await asyncio.to_thread(held.release)
        await asyncio.wait_for(asyncio.gather(first, second), PATIENCE)
        await http.aclose()
        return order

    with direct.lease("ci") as held, direct.lease("ci"):
        assert asyncio.run(run()) == ["first", "second"]


async def _cancel_at_the_grant(proxy: Proxy, direct: Client) -> None:
    async with AsyncClient(proxy.url) as client:
        proxy.holds = ACQUIRE
        task = asyncio.create_task(client.lease("ci", wait=60).acquire())
        async with asyncio.timeout(PATIENCE):
            while not proxy.lost:
                await asyncio.sleep(0.005)
        assert (await asyncio.to_thread(direct.pool, "ci")).leased == 1
        proxy.holds = ""
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_cancellation_in_the_moment_of_the_grant_leaves_no_lease(direct: Client, proxy: Proxy) -> None:
    asyncio.run(_cancel_at_the_grant(proxy, direct))
    assert direct.pool("ci").leased == 0


def test_a_cancelled_waiter_leaves_the_wait_queue(direct: Client, server: Server) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client, client.lease("ci"), client.lease("ci"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3), client.lease("ci", wait=600):
                    raise AssertionError("there is no third key")
            assert (await client.pool("ci")).waiting == 0

    asyncio.run(run())
    assert direct.pool("ci").leased == 0


def test_a_cancellation_in_the_block_releases_the_key(direct: Client, server: Server) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            entered = asyncio.Event()

            async def use() -> None:
                async with client.lease("ci"):
                    entered.set()
                    await asyncio.sleep(PATIENCE)

            task = asyncio.create_task(use())
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.pool("ci")).leased == 0

    asyncio.run(run())


def test_a_loss_cancels_the_task_in_the_block_and_only_there(direct: Client, server: Server) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            lease = client.lease("ci")
            with pytest.raises(LeaseLost) as lost:
                async with lease:
                    await client.force_release("ci", lease.key_id)
                    await asyncio.sleep(PATIENCE)
                    pytest.fail("the block went on")
            assert lost.value.cause is LeaseEnd.RELEASED
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)

            losses: list[LeaseLost] = []
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(LeaseLost):
                    async with client.lease("ci", on_lost=losses.append) as other:
                        await client.force_release("ci", other.key_id)
                        assert await other.wait_lost() is not None
            assert len(losses) == 1

            # A cancellation from outside stays one, also when the lease is lost.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), client.lease("ci") as third:
                    await client.force_release("ci", third.key_id)
                    await asyncio.sleep(PATIENCE)

    asyncio.run(run())


def test_an_answer_of_another_server_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b"<h1>It works</h1>"
            self.send_response(self.server.status)  # type: ignore[attr-defined]
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for status in (200, 404, 502):
            other.status = status  # type: ignore[attr-defined]
            with Client(f"http://127.0.0.1:{other.server_port}") as client:
                with pytest.raises(UnexpectedAnswer) as error:
                    client.lease("ci").acquire()
                assert error.value.status == status
                assert "its content type is text/html; another server or a proxy" in str(error.value)
        other.shutdown()


def test_a_wait_for_a_busy_pool_ends_with_its_last_answer(direct: Client, proxy: Proxy) -> None:
    with Client(proxy.url) as client, client.lease("ci"), client.lease("ci"):
        with pytest.raises(WaitEnded) as ended:
            client.lease("ci", wait=1).acquire()
        assert isinstance(ended.value.last, NoKeyAvailable)
