"""The pytest plugin, in runs of its own: with and without pytest-xdist."""

from __future__ import annotations

import json

import pytest
from conftest import wait_for

from keypeg import Client


@pytest.fixture
def run(
    client: Client, pool: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A directory for a run whose tests borrow the two keys of the pool."""
    monkeypatch.setenv("KEYPEG_SERVER", client.server)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(f"[pytest]\nkeypeg_pool = {pool}\nkeypeg_wait = 60\n")
    return pytester


ARGUMENTS = ("-p", "no:cacheprovider", "-W", "error")


def test_each_test_has_a_key_of_its_own_and_its_name(run: pytest.Pytester, client: Client, pool: str) -> None:
    run.makepyfile(
        """
        def test_one(keypeg_lease, keypeg_client):
            key = keypeg_client.key(keypeg_lease.pool, keypeg_lease.key_id)
            assert key.lease.holder.endswith("::test_one")
            assert keypeg_lease.key

        def test_both(keypeg_lease, keypeg_acquire):
            assert keypeg_acquire().key != keypeg_lease.key

        def test_again(keypeg_lease, keypeg_acquire):
            keypeg_acquire()
        """
    )
    run.runpytest_subprocess(*ARGUMENTS).assert_outcomes(passed=3)
    assert client.pool(pool).leased == 0


def test_options_come_from_the_marker_the_command_line_and_the_configuration(
    run: pytest.Pytester, client: Client, pool: str
) -> None:
    other, third = f"{pool}-other", f"{pool}-third"
    for name in (other, third):
        client.put_pool(name, keepalive_ttl_seconds=None)
        client.generate(name)
    run.makepyfile(
        f"""
        import pytest
        from keypeg import WaitEnded, NoKeyAvailable

        def test_run(keypeg_lease):
            assert keypeg_lease.pool == {other!r}
            assert 0 < keypeg_lease.remaining <= 20

        @pytest.mark.keypeg(pool={third!r}, ttl=10, wait=0)
        def test_marker(keypeg_lease, keypeg_acquire):
            assert keypeg_lease.pool == {third!r}
            assert 0 < keypeg_lease.remaining <= 10
            with pytest.raises(NoKeyAvailable):
                keypeg_acquire()
            assert keypeg_acquire({pool!r}, ttl=7).remaining <= 7
        """
    )
    run.runpytest_subprocess(*ARGUMENTS, "--keypeg-pool", other, "--keypeg-ttl", "20").assert_outcomes(
        passed=2
    )


def test_a_lease_lost_in_a_test_fails_this_test_and_no_other(
    run: pytest.Pytester, client: Client, pool: str
) -> None:
    run.makepyfile(
        """
        import time, pytest

        def test_lost_in_a_call_that_blocks(keypeg_lease, keypeg_client):
            keypeg_client.force_release(keypeg_lease.pool, keypeg_lease.key_id)
            time.sleep(60)

        def test_lost_and_swallowed(keypeg_lease, keypeg_client):
            keypeg_client.force_release(keypeg_lease.pool, keypeg_lease.key_id)
            try:
                time.sleep(60)
            except Exception:
                pass

        def test_lost_of_two(keypeg_acquire, keypeg_client):
            keypeg_acquire()
            lease = keypeg_acquire()
            keypeg_client.force_release(lease.pool, lease.key_id)
            time.sleep(60)

        def test_lost_before_it_failed(keypeg_lease, keypeg_client):
            keypeg_lease.disarm()
            keypeg_client.force_release(keypeg_lease.pool, keypeg_lease.key_id)
            while keypeg_lease.lost is None:
                time.sleep(0.01)
            assert False, "its own reason"

        @pytest.fixture
        def lost(keypeg_lease, keypeg_client):
            keypeg_client.force_release(keypeg_lease.pool, keypeg_lease.key_id)
            while keypeg_lease.lost is None:
                time.sleep(0.01)

        def test_lost_in_a_fixture(lost):
            raise SystemExit("not reached")

        def test_next(keypeg_lease):
            assert keypeg_lease.is_held
        """
    )
    result = run.runpytest_subprocess(*ARGUMENTS)
    result.assert_outcomes(passed=1, failed=5)
    lost = [line for line in result.outlines if "another client released it" in line and line.startswith("E")]
    assert len(lost) == 5, result.outlines
    result.stdout.fnmatch_lines(["E*its own reason*"])
    assert client.pool(pool).leased == 0


def test_a_session_has_one_key_and_its_loss_fails_all_further_tests(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import time

        def test_one(keypeg_worker_lease):
            test_one.id = keypeg_worker_lease.fencing_token

        def test_same(keypeg_worker_lease):
            assert keypeg_worker_lease.fencing_token == test_one.id

        def test_without(keypeg_client):
            pass

        def test_lost(keypeg_worker_lease, keypeg_client):
            keypeg_client.force_release(keypeg_worker_lease.pool, keypeg_worker_lease.key_id)
            time.sleep(60)

        def test_after(keypeg_worker_lease):
            pass

        def test_after_without(keypeg_client):
            pass
        """
    )
    run.runpytest_subprocess(*ARGUMENTS).assert_outcomes(passed=4, failed=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--keypeg-wait", "soon"), "--keypeg-wait is 'soon': use a number of seconds"),
        (("-o", "keypeg_ttl=x"), "keypeg_ttl is 'x': use a number of seconds"),
    ],
)
def test_an_invalid_option_is_named_before_a_test_runs(
    run: pytest.Pytester, arguments: tuple[str, ...], says: str
) -> None:
    run.makepyfile("def test_one(keypeg_lease): pass")
    result = run.runpytest_subprocess(*ARGUMENTS, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{says}*"])


def test_an_unknown_option_of_the_marker_and_a_missing_pool_are_named(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import pytest

        @pytest.mark.keypeg(pol="ci")
        def test_marker(keypeg_lease):
            pass

        @pytest.mark.keypeg(pool="nowhere")
        def test_pool(keypeg_lease):
            pass
        """
    )
    result = run.runpytest_subprocess(*ARGUMENTS)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*has pol: use pool=, wait= or ttl=*", "*unknown_pool*"])


def test_a_run_without_keys_does_not_import_the_client(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_one(): assert 'keypeg' not in sys.modules\n")
    pytester.runpytest_subprocess(*ARGUMENTS).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("fixture", "workers"), [("keypeg_lease", 8), ("keypeg_worker_lease", 3)], ids=["tests", "workers"]
)
def test_more_workers_than_accounts_share_them_and_no_test_sees_the_account_of_another(
    run: pytest.Pytester, client: Client, pool: str, fixture: str, workers: int
) -> None:
    """Each test has a lock file of its account while it runs; two tests on one account would fail."""
    if workers == 8:
        client.import_values(pool, [f"{pool}-c", f"{pool}-d"])
    accounts = client.pool(pool).total
    tests = 40
    run.makepyfile(
        f"""
        import json, os, time
        import pytest

        @pytest.mark.parametrize("number", range({tests}))
        def test_account({fixture}, number):
            lease = {fixture}
            lock = lease.key_id + ".lock"
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            time.sleep(0.02)
            os.unlink(lock)
            with open("accounts", "a") as file:
                print(json.dumps([lease.key, lease.fencing_token]), file=file)
        """
    )
    result = run.runpytest_subprocess(*ARGUMENTS, "-n", str(workers))
    result.assert_outcomes(passed=tests)
    rows = [json.loads(line) for line in (run.path / "accounts").read_text().splitlines()]
    assert len(rows) == tests
    assert {key for key, _ in rows} <= {f"{pool}-{name}" for name in "abcd"}
    assert not list(run.path.glob("*.lock"))
    if fixture == "keypeg_lease":
        assert len({token for _, token in rows}) == tests
    wait_for(lambda: client.pool(pool).available == accounts, "the releases")
