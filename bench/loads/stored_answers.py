"""Fills the stored answers of Idempotency-Keys from one token; at the end another token sends one request."""

from compare.flood import flood

TOKENS = True
WORKERS = 2
# A server without shares is full after 40 to 140 seconds.
SECONDS = 150


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None})


def attack(target):
    until, target.until = target.until, target.until - 2

    def request(number):
        key = f"Idempotency-Key: {target.worker}-{number}\r\nContent-Type: application/json\r\n"
        return "POST", "/v1/pools/load/keys", key, '{"count": 1}'

    counts, _ = flood(target, 64, request)
    target.until = until
    head = {"authorization": f"Bearer {target.tokens['operator']}", "idempotency-key": f"other-{target.worker}"}
    status, answer = target.request("POST", "/v1/pools/load/keys", {"count": 1}, head)
    return f"{counts}, another token: {status} {(answer or {}).get('code', '')}"
