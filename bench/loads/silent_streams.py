"""Opens 1 000 event streams of a pool and reads nothing, while a client acquires and releases its keys."""

import http.client
import json
import socket

SECONDS = 20
STREAMS = 1_000


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None})
    status, _ = target.request("POST", "/v1/pools/load/keys", {"count": 100})
    assert status == 201, status


def attack(target):
    request = f"GET /v1/pools/load/events HTTP/1.1\r\nHost: localhost\r\n{target.authorization}\r\n".encode()
    streams = []
    for _ in range(STREAMS):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            one.connect(("127.0.0.1", target.port))
            one.send(request)
            streams.append(one)
        except OSError:
            one.close()
    headers = {"authorization": f"Bearer {target.token}"} if target.token else {}
    client, pairs = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30), 0
    body = json.dumps({"holder": "h" * 128})
    while not target.has_ended():
        try:
            client.request("POST", "/v1/pools/load/leases", body, {**headers, "content-type": "application/json"})
            lease = json.loads(client.getresponse().read())["id"]
            client.request("POST", f"/v1/pools/load/leases/{lease}/release", headers=headers)
            client.getresponse().read()
            pairs += 1
        except (OSError, http.client.HTTPException, KeyError, ValueError):
            client.close()
    return f"{len(streams)} streams requested; {pairs / target.seconds:.0f} acquires and releases per second"
