"""A pool for each test: a MetaService in this process, and LocalServices as processes where a test asks for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from programs import line_with

import memcache

START_S = 30.0
"""Longest wait for a process to say that it is ready."""


class Program:
    """One `python -m memcache.*` process, read line by line."""

    def __init__(self, module: str, *settings: str) -> None:
        arguments = [part for setting in settings for part in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def expect(self, word: str, *, on_stderr: bool = False) -> str:
        """The first line with this word in it."""
        pipe = self.process.stderr if on_stderr else self.process.stdout
        assert pipe is not None
        line = line_with(word, pipe, START_S)
        if line is None:
            self.process.kill()
            raise AssertionError(f"never said {word!r}; stderr: {self.process.communicate()[1]}")
        return line

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def meta() -> Iterator[memcache.MetaService]:
    with memcache.MetaService(listen="127.0.0.1:0", node_dead_ms=2000, heartbeat_ms=200) as service:
        yield service


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(module: str, *settings: str) -> Program:
        started.append(Program(module, *settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def node(meta: memcache.MetaService, program: Callable[..., Program]) -> Callable[..., Program]:
    """Starts a standalone LocalService of the test's pool and waits until it has joined."""

    def start(*settings: str, lend: str = "64MB") -> Program:
        one = program("memcache.local", f"meta_address={meta.address}", f"lend_bytes={lend}", *settings)
        one.expect("joined")
        return one

    return start


@pytest.fixture
def quick_meta() -> Iterator[memcache.MetaService]:
    """A MetaService that notices the death of a node within a second."""
    with memcache.MetaService(listen="127.0.0.1:0", node_dead_ms=1000, heartbeat_ms=100) as service:
        yield service


@pytest.fixture
def quick_node(program: Callable[..., Program], quick_meta: memcache.MetaService) -> Callable[..., Program]:
    def start(*settings: str) -> Program:
        node = program("memcache.local", f"meta_address={quick_meta.address}", "lend_bytes=64MB", *settings)
        node.expect("joined")
        return node

    return start


@pytest.fixture
def store(meta: memcache.MetaService) -> Iterator[memcache.Store]:
    """A store that lends 32 MiB to the test's pool."""
    with memcache.Store(meta_address=meta.address, lend_bytes="32MB") as one:
        yield one


def run_cli(*arguments: str, meta: memcache.MetaService) -> subprocess.CompletedProcess[str]:
    """What `memcache ARGUMENTS` says of this MetaService's pool."""
    command = [sys.executable, "-m", "memcache.cli", *arguments, "--meta-address", meta.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether `check` comes true within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.05)
    return check()


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a script in a fresh interpreter and returns what it printed."""

    def run(script: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
