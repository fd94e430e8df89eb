"""One session with the client that openapi-generator makes for Python."""

import sys

import openapi_client as api

POOL = "generated-openapi-generator-python"

client = api.ApiClient(api.Configuration(host=sys.argv[1]))
keys, leases, pools = api.KeysApi(client), api.LeasesApi(client), api.PoolsApi(client)


def refused(status, code, call, *arguments):
    try:
        call(*arguments)
    except api.ApiException as error:
        assert error.status == status and error.data.code == code, error
        return error.data
    raise AssertionError("not refused")


pool = pools.put_pool(POOL, policy_request=api.PolicyRequest(lease_ttl_seconds=30))
assert pool.lease_ttl_seconds == 30, pool
added = keys.add_keys(POOL).keys[0]
grant = leases.acquire(POOL)
assert (grant.key_id, grant.key) == (added.id, added.key) and grant.expires_at > grant.granted_at
none = refused(404, api.Code.NO_KEY_AVAILABLE, leases.acquire, POOL)
assert none.leased == 1, none
gone = refused(410, api.Code.LEASE_ENDED, leases.release, POOL, "0" * 26)
assert gone.outcome == api.Outcome.NOT_APPLIED, gone
