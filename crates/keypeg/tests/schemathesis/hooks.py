"""Hooks that keep the generated cases useful: most use a pool that exists and stays usable, and no
case waits for a key for long. Limits between two fields, which the document cannot express, are
checked here. The limits of each single field are tested in tests/meta/openapi.rs."""

import hashlib

import schemathesis

POOL = "default"
WAIT_MAX = 0.02
# The fields of each operation whose limit the document cannot express: it is a pool's policy, or
# another field.
EXTERNAL_LIMIT = {
    "acquire": ["ttl_seconds"],
    "renew": ["ttl_seconds"],
    "putPool": ["max_hold_seconds"],
    # Exactly one of them, and `all` only as true: generators of clients do not support such schemas.
    "keepAlive": ["ids", "all"],
    # Only beside `values`, which is not null; `label` or `labels`, and one label for each new key.
    "addKeys": ["keepalive", "allow_retired", "label", "labels"],
}
# Codes of paths and methods that the document does not list.
OF_NO_OPERATION = ["not_found", "method_not_allowed"]


def is_positive(case, part):
    components = case.meta.components if case.meta else {}
    for location, component in components.items():
        if location.name == part:
            return component.mode.is_positive
    return True


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def clamp_field(body, field, low, high, allowed_max):
    """Moves an allowed number into a range that does no harm."""
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
        # Values of one answer become parts of the next path, lists too. A slash in one of them would
        # be the path of no operation.
        if "/" in str(value):
            case.path_parameters[name] = str(value).replace("/", "-")
    # A body of null counts as none, which the document of a body cannot express.
    if case.body is None and not is_positive(case, "BODY"):
        case.body = []
    if isinstance(case.body, dict):
        clamp_field(case.body, "wait_seconds", 0, WAIT_MAX, 300)
        # A pool whose keys are purged at once, rest for days or are limited to a few leaves little
        # to test.
        if case.method == "PUT":
            clamp_field(case.body, "keepalive_ttl_seconds", 300, 604_800, 604_800)
            clamp_field(case.body, "rest_seconds", 0, 0.01, 604_800)
            clamp_field(case.body, "max_keys", 1_000_000, 1_000_000_000, 1_000_000_000)
    # The server rejects the same key with another body, which the document cannot express. So the
    # key is a hash of the request, and a repeated request gets the stored answer.
    if case.headers and "Idempotency-Key" in case.headers and is_positive(case, "HEADER"):
        request = f"{case.method} {case.path_parameters} {case.body}"
        case.headers["Idempotency-Key"] = hashlib.sha256(request.encode()).hexdigest()
    if case.headers and "wait" in str(case.headers.get("Prefer", "")).lower():
        case.headers["Prefer"] = "wait=0"


@schemathesis.check
def only_an_external_limit_rejects_valid_data(ctx, response, case):
    """A request that fits the document is rejected as `invalid` for no other field."""
    fields = EXTERNAL_LIMIT.get(case.operation.definition.raw.get("operationId"))
    if response.status_code != 422 or fields is None:
        return
    if case.meta and not case.meta.generation.mode.is_positive:
        return
    rejected = response.json().get("field")
    if rejected not in fields:
        raise AssertionError(f"rejected for {rejected}, which the document allows")


@schemathesis.check
def a_problem_has_a_documented_code(ctx, response, case):
    """The schema of every problem is the same, so that generators of clients support it. The codes
    of each status stand in `x-codes`; a failed change also says whether it was applied."""
    if response.headers.get("content-type", [""])[0] != "application/problem+json":
        return
    problem, status = response.json(), response.status_code
    if problem["code"] in OF_NO_OPERATION:
        return
    documented = case.operation.definition.raw["responses"].get(str(status), {})
    if "$ref" in documented:
        name = documented["$ref"].rsplit("/", 1)[1]
        documented = case.operation.schema.raw_schema["components"]["responses"][name]
    if problem["code"] not in documented.get("x-codes", []):
        raise AssertionError(f"{problem['code']} is not documented for {status}")
    if problem["status"] != status:
        raise AssertionError(f"the problem has status {problem['status']}, the answer {status}")
    if case.method != "GET" and "outcome" not in problem:
        raise AssertionError("a failed change without an outcome")
