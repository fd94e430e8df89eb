"""One session with the client that openapi-python-client generates: every answer is decoded."""

import sys

from keypeg_client import Client
from keypeg_client.api.keys import add_keys, list_keys
from keypeg_client.api.leases import acquire, release, renew
from keypeg_client.api.pools import delete_pool, put_pool, show_pool
from keypeg_client.models import (
    AcquireRequest,
    Code,
    GenerateRequest,
    Grant,
    KeyState,
    PolicyRequest,
    Problem,
    ReleaseRequest,
)

POOL = "generated-python"

client = Client(base_url=sys.argv[1])
policy = PolicyRequest(lease_ttl_seconds=30, max_hold_seconds=60)
pool = put_pool.sync(POOL, client=client, body=policy)
assert (pool.pool, pool.lease_ttl_seconds, pool.total) == (POOL, 30, 0), pool
added = add_keys.sync(POOL, client=client, body=GenerateRequest(count=2))
values = {key.id: key.key for key in added.keys}
assert len(values) == 2, added

first, second = (acquire.sync(POOL, client=client, body=AcquireRequest(holder="h")) for _ in "12")
assert isinstance(first, Grant) and isinstance(second, Grant), (first, second)
assert values[first.key_id] == first.key and first.key_id != second.key_id
assert second.fencing_token > first.fencing_token and first.expires_at > first.granted_at

refused = acquire.sync_detailed(POOL, client=client)
assert refused.status_code == 404 and isinstance(refused.parsed, Problem), refused
assert refused.parsed.code == Code.NO_KEY_AVAILABLE and refused.parsed.leased == 2, refused.parsed

invalid = acquire.sync(POOL, client=client, body=AcquireRequest(ttl_seconds=0))
assert invalid.code == Code.INVALID and invalid.field == "ttl_seconds", invalid

assert renew.sync(POOL, first.id, client=client).fencing_token == first.fencing_token
released = release.sync_detailed(POOL, first.id, client=client, body=ReleaseRequest(quarantine=True))
assert released.status_code == 204, released
ended = release.sync(POOL, first.id, client=client)
assert ended.code == Code.LEASE_ENDED, ended

page = list_keys.sync(POOL, client=client, limit=1)
assert len(page.keys) == 1 and page.next_cursor, page
quarantined = list_keys.sync(POOL, client=client, state=KeyState.QUARANTINED)
assert [key.id for key in quarantined.keys] == [first.key_id], quarantined

assert delete_pool.sync_detailed(POOL, client=client).status_code == 204
assert show_pool.sync(POOL, client=client).code == Code.UNKNOWN_POOL
