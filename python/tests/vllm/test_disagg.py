"""Prefill and decode as two ``vllm serve`` processes that share KV through a pool, and the pool's book killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)
START_SECONDS = 420
REQUEST_SECONDS = 120
PRODUCER = {"kv_connector": "MemCacheConnector", "kv_role": "kv_producer", "kv_load_failure_policy": "recompute"}
BLOCK = 32


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(url: str, body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as reply:
        return bytes(reply.read())


class Proxy(ThreadingHTTPServer):
    """Sends each completion to the prefill server for one token, then as it came to the decode server."""

    daemon_threads = True

    def __init__(self, prefill: str, decode: str) -> None:
        self.prefill, self.decode = prefill, decode
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            call(self.server.prefill + self.path, body | {"max_tokens": 1, "stream": False})
            status, answer = 200, call(self.server.decode + self.path, body)
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Processes:
    """Child processes with a log file each; all of them are gone when the test ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with open(self.log(name), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )
        self._running[name] = process
        return process

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def wait_for(self, name: str, ready: Callable[[], Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self._running[name].poll() is None, f"{name} ended:\n{self.log(name).read_text()[-4000:]}"
            with contextlib.suppress(OSError):
                ready()
                return
            time.sleep(0.5)
        raise AssertionError(f"{name} is not ready:\n{self.log(name).read_text()[-4000:]}")

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait(10)

    def stop_all(self) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Cluster:
    processes: Processes
    meta_address: str
    prefill: str
    decode: str
    proxy: str
    model: str

    def complete(self, prompt: str) -> list[int]:
        """Greedy tokens by way of the proxy."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": 16,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        return list(json.loads(call(self.proxy + "/v1/completions", body))["choices"][0]["token_ids"])

    def hits(self) -> int:
        """Tokens the decode server has loaded from the pool so far."""
        for line in call(self.decode + "/metrics").decode().splitlines():
            if line.startswith("vllm:external_prefix_cache_hits_total"):
                return int(float(line.rsplit(" ", 1)[1]))
        return 0

    def start_meta(self) -> None:
        # A node that joins again rests for the longer of the two times, until nobody writes to it from before.
        settings = (f"listen={self.meta_address}", "reservation_ttl_ms=2000", "lease_ms=2000")
        self.processes.start("meta", "-m", "memcache.meta", *(f for one in settings for f in ("--set", one)))
        host, port = self.meta_address.split(":")
        self.processes.wait_for("meta", lambda: socket.create_connection((host, int(port)), 1).close(), 30)


def serve(processes: Processes, name: str, model: str, transfer: str, **environment: str) -> str:
    port = free_port()
    processes.start(
        name,
        *("-m", "vllm.entrypoints.cli.main", "serve", model, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", "1024", "--block-size", "32", "--enforce-eager"),
        *("--max-num-seqs", "8", "--num-gpu-blocks-override", "256", "--distributed-executor-backend", "uni"),
        *("--kv-transfer-config", transfer),
        **environment,
    )
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def cluster(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A MetaService, two lending nodes, a prefill and a decode server, a proxy."""
    processes = Processes(tmp_path_factory.mktemp("disagg"))
    address, model = f"127.0.0.1:{free_port()}", str(models["llama"])
    cluster = Cluster(processes, address, "", "", "", model)
    try:
        cluster.start_meta()
        for name in ("node0", "node1"):
            options = (f"meta_address={address}", "lend_bytes=64MB")
            processes.start(name, "-m", "memcache.local", *(f for option in options for f in ("--set", option)))
        common = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_SERVER_DEV_MODE": "1"}
        extra = {"meta_address": address, "lend_bytes": 0, "retry_ms": 200, "retry_max_ms": 500}
        producer = json.dumps(PRODUCER | {"kv_connector_extra_config": extra})
        cluster.prefill = serve(processes, "prefill", model, producer, **common)
        # The decode server is started by the word alone; where the pool is, it learns from the environment.
        where = {"MEMCACHE_META_ADDRESS": address, "MEMCACHE_LEND_BYTES": "0"}
        cluster.decode = serve(processes, "decode", model, "memcache", **common, **where)
        for name, url in (("prefill", cluster.prefill), ("decode", cluster.decode)):
            processes.wait_for(name, lambda url=url: call(url + "/health"), START_SECONDS)
        cluster.proxy = Proxy(cluster.prefill, cluster.decode).url
        yield cluster
    finally:
        processes.stop_all()


def prompt(number: int) -> str:
    """A prompt of 361 tokens (bytes) that shares nothing with those of other numbers."""
    return (f"Story {number}: " + "the quick brown fox jumps over the lazy dog. " * 10)[:361]


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> dict[int, list[int]]:
    """Greedy tokens of the prompts 0..15 from an engine without connector."""
    from conftest import Engine

    plain = Engine(models["llama"], None)
    tokens = dict(enumerate(plain.generate(*(prompt(number) for number in range(16)))))
    plain.close()
    return tokens


def test_decode_loads_what_prefill_computed(cluster: Cluster, expected: dict[int, list[int]]) -> None:
    for number in range(4):
        before = cluster.hits()
        assert cluster.complete(prompt(number)) == expected[number]
        assert cluster.hits() - before == 361 // BLOCK * BLOCK


def test_the_book_killed_under_traffic_costs_no_request(cluster: Cluster, expected: dict[int, list[int]]) -> None:
    answers: list[bool] = []
    stop = threading.Event()

    def traffic() -> None:
        number = 0
        while not stop.is_set():
            try:
                answers.append(cluster.complete(prompt(number % 16)) == expected[number % 16])
            except Exception:
                answers.append(False)
            number += 1

    client = threading.Thread(target=traffic)
    client.start()
    try:
        after(lambda: len(answers) >= 3)
        cluster.processes.kill("meta")
        so_far = len(answers)
        after(lambda: len(answers) >= so_far + 3)
        cluster.start_meta()
        after(lambda: hits_again(cluster))
    finally:
        stop.set()
        client.join(REQUEST_SECONDS)
    assert answers
    assert all(answers), f"{answers.count(False)} of {len(answers)} requests failed"


def hits_again(cluster: Cluster) -> bool:
    """Whether a fresh prompt goes through the pool."""
    before = cluster.hits()
    cluster.complete(prompt(100 + int(time.monotonic() * 1000)))
    return cluster.hits() - before >= 361 // BLOCK * BLOCK


def after(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
