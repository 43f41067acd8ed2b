"""What monitors read: health and metrics over plain HTTP, and the log as JSON."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Program

import memcache

pytestmark = pytest.mark.integration


def fetch(address: str, path: str) -> str:
    # urllib asks for `Connection: close`.
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode()


def samples(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(memcache_\S+) (\S+)$", text, re.MULTILINE)}


def test_health_and_metrics_are_on_the_port_of_the_service(meta: memcache.MetaService) -> None:
    with memcache.Store(meta_address=meta.address, lend_bytes="8MB") as store:
        store.put_batch([b"a", b"b"], [b"1", b"22"])
        assert store.match_prefix([b"a", b"b", b"c"]) == 2
        health = json.loads(fetch(meta.address, "/health"))
        assert health["status"] == "serving"
        assert (health["nodes"], health["objects"]) == (1, 2)
        found = samples(fetch(meta.address, "/metrics"))
        assert found['memcache_meta_keys_total{rpc="reserve",outcome="reserved"}'] == 2
        assert found['memcache_meta_keys_total{rpc="seal",outcome="sealed"}'] == 2
        assert found['memcache_meta_keys_total{rpc="match_prefix",outcome="matched"}'] == 2
        assert found['memcache_meta_keys_total{rpc="match_prefix",outcome="unmatched"}'] == 1
        assert found['memcache_meta_request_seconds_count{rpc="match_prefix"}'] == 1
        assert found["memcache_meta_objects"] == 2
        assert found["memcache_meta_sessions"] >= 1
        assert found["memcache_meta_resident_bytes"] > 1 << 20


def test_other_paths_are_not_found(meta: memcache.MetaService) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(meta.address, "/nothing")


def test_a_connection_is_kept_and_used_again(meta: memcache.MetaService) -> None:
    connection = http.client.HTTPConnection(meta.address, timeout=10)
    for _ in range(3):
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] == "serving"
    connection.close()


def test_a_unix_socket_serves_them_too(program: Callable[..., Program], tmp_path: Path) -> None:
    path = tmp_path / "meta.sock"
    program("memcache.meta", f"listen=unix:{path}").expect("serving on")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: memcache\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200")


def test_the_log_can_be_json(program: Callable[..., Program]) -> None:
    one = program("memcache.meta", "listen=127.0.0.1:0", "log_format=json")
    one.expect("serving on")
    one.process.send_signal(signal.SIGTERM)
    _, log = one.process.communicate(timeout=10)
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["level"] == "INFO" and line["fields"]["message"] == "serving" for line in lines)
