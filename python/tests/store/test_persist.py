"""Memory that outlives its process: `persist = "/dev/shm/NAME"`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Program, eventually

import memcache
from memcache import PutStatus

pytestmark = pytest.mark.integration

LEND = 8 << 20
KEYS = [f"block {number}" for number in range(64)]


def value(key: str) -> bytes:
    return (key * 2000)[: 9000 + len(key)].encode()


@pytest.fixture
def file() -> Iterator[Path]:
    path = Path(f"/dev/shm/memcache-test-persist-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def test_a_node_that_was_killed_brings_its_content_back(
    meta: memcache.MetaService, program: Callable[..., Program], file: Path
) -> None:
    settings = (f"meta_address={meta.address}", f"lend_bytes={LEND}", f"persist={file}")
    first = program("memcache.local", *settings)
    first.expect("joined")
    with memcache.Store(meta_address=meta.address) as store:
        assert set(store.put_batch(KEYS, [value(key) for key in KEYS])) == {PutStatus.STORED}
        assert store.remove(KEYS[0])
        before = [node["node"] for node in store.status()["nodes"]]
        first.kill()
        second = program("memcache.local", *settings)
        second.expect("joined")
        assert eventually(lambda: all(store.get(key) == value(key) for key in KEYS[1:]))
        assert [node["node"] for node in store.status()["nodes"]] == before
        assert store.get(KEYS[0]) is None


def test_a_store_lends_a_file_and_brings_it_back(meta: memcache.MetaService, file: Path) -> None:
    settings = {"meta_address": meta.address, "lend_bytes": LEND, "persist": str(file), "holdings_slots": 100}
    with memcache.Store(**settings) as store:
        assert (store.config.persist, store.config.holdings_slots) == (str(file), 100)
        assert store.put("k", b"kept") == PutStatus.STORED
    assert file.exists()
    with memcache.Store(**settings) as store:
        assert eventually(lambda: store.get("k") == b"kept")


def test_only_one_process_lends_a_file(meta: memcache.MetaService, node: Callable[..., Program], file: Path) -> None:
    owner = node(f"persist={file}", lend=str(LEND))
    second = memcache.LocalService(meta_address=meta.address, lend_bytes=LEND, persist=str(file))
    with pytest.raises(memcache.MemCacheError, match="another process lends it still"):
        second.start()
    owner.kill()
    with memcache.LocalService(meta_address=meta.address, lend_bytes=LEND, persist=str(file)) as third:
        assert third.wait_joined(20_000)


def test_a_node_that_is_refused_says_why_and_says_it_once(
    meta: memcache.MetaService, program: Callable[..., Program], file: Path
) -> None:
    """A copy of a lent file is the same node once more, and the later of the two displaces the earlier."""
    copy = Path(f"{file}-copy")
    settings = (f"meta_address={meta.address}", f"lend_bytes={LEND}")
    try:
        first = program("memcache.local", *settings, f"persist={file}")
        first.expect("joined")
        shutil.copyfile(file, copy)
        program("memcache.local", *settings, f"persist={copy}").expect("joined")
        assert "incarnation" in first.expect("the MetaService refuses this node", on_stderr=True)
        time.sleep(1.0)  # several heartbeats
        first.kill()
        assert "refuses" not in first.process.communicate()[1], "said once"
    finally:
        copy.unlink(missing_ok=True)


def test_a_file_that_is_no_memory_is_refused(meta: memcache.MetaService, tmp_path: Path) -> None:
    if on_memory(tmp_path):
        pytest.skip("the folder for temporary files is memory")
    service = memcache.LocalService(meta_address=meta.address, lend_bytes=LEND, persist=str(tmp_path / "disk"))
    with pytest.raises(memcache.MemCacheError, match="is not memory"):
        service.start()


def on_memory(folder: Path) -> bool:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    kinds = {mount[1]: mount[2] for mount in mounts if folder.is_relative_to(mount[1])}
    return kinds[max(kinds, key=len)] in {"tmpfs", "hugetlbfs"}


def test_a_file_of_another_length_is_refused_with_what_to_do(meta: memcache.MetaService, file: Path) -> None:
    with memcache.LocalService(meta_address=meta.address, lend_bytes=LEND, persist=str(file)):
        pass
    longer = memcache.LocalService(meta_address=meta.address, lend_bytes=2 * LEND, persist=str(file))
    with pytest.raises(memcache.MemCacheError, match="delete the file"):
        longer.start()
