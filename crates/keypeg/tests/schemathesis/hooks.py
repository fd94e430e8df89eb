"""What keeps the cases to the point: most are about a pool that is there and stays usable, none
waits in line for longer than a moment, and what the document cannot say of two fields at once is
checked here. The bounds of every field are tested, one by one, in tests/openapi.rs."""

import hashlib

import schemathesis

POOL = "default"
WAIT_MAX = 0.02
# The one field of an operation whose bound is the pool's own or another field's.
BOUND_ELSEWHERE = {
    "acquire": "ttl_seconds",
    "renew": "ttl_seconds",
    "putPool": "max_hold_seconds",
}


def is_positive(case, part):
    components = case.meta.components if case.meta else {}
    for location, component in components.items():
        if location.name == part:
            return component.mode.is_positive
    return True


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def into(body, field, low, high, allowed_max):
    """Moves a number that is allowed to where it does no harm."""
    value = body.get(field)
    if is_number(value) and 0 < value <= allowed_max:
        body[field] = min(max(value, low), high)


@schemathesis.hook
def before_call(context, case, kwargs):
    stateful = case.meta and case.meta.phase.name.name == "STATEFUL_TESTING"
    if is_positive(case, "PATH") and not stateful:
        pool = (case.path_parameters or {}).get("pool")
        if isinstance(pool, str) and len(pool) % 8 != 0:
            case.path_parameters["pool"] = POOL
    for name, value in (case.path_parameters or {}).items():
        # What one answer told is put into the path of the next request, lists too: with a slash in
        # it that is the path of no operation.
        if "/" in str(value):
            case.path_parameters[name] = str(value).replace("/", "-")
    if isinstance(case.body, dict):
        into(case.body, "wait_seconds", 0, WAIT_MAX, 300)
        # A pool whose keys are purged at once, rest for days or may not be many has little left
        # to test.
        if case.method == "PUT":
            into(case.body, "keepalive_ttl_seconds", 300, 604_800, 604_800)
            into(case.body, "rest_seconds", 0, 0.01, 604_800)
            into(case.body, "max_keys", 1_000_000, 1_000_000_000, 1_000_000_000)
    # The same key under another body is refused, which the document cannot say: so the key is made
    # of the body, and what is asked again is answered again.
    if case.headers and "Idempotency-Key" in case.headers and is_positive(case, "HEADER"):
        asked = f"{case.method} {case.path_parameters} {case.body}"
        case.headers["Idempotency-Key"] = hashlib.sha256(asked.encode()).hexdigest()
    if case.headers and "wait" in str(case.headers.get("Prefer", "")).lower():
        case.headers["Prefer"] = "wait=0"


@schemathesis.check
def only_a_bound_that_is_elsewhere(ctx, response, case):
    """A request that fits the document is refused as `invalid` for no other field."""
    field = BOUND_ELSEWHERE.get(case.operation.definition.raw.get("operationId"))
    if response.status_code != 422 or field is None:
        return
    if case.meta and not case.meta.generation.mode.is_positive:
        return
    told = response.json().get("field")
    if told != field:
        raise AssertionError(f"refused for {told}, which the document allows")
