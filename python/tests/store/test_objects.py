"""Objects: put, get, exist, remove; single and batched; what each buffer kind does."""

from __future__ import annotations

import numpy as np
import pytest

import memcache
from memcache import GetStatus, Presence, PutStatus


def test_a_value_comes_back(store: memcache.Store) -> None:
    assert store.put("k", b"value") is PutStatus.STORED
    assert store.get("k") == b"value"
    assert store.exist("k")
    assert store.put("k", b"other") is PutStatus.PRESENT
    assert store.get(b"k") == b"value"
    assert store.remove("k")
    assert not store.remove("k")
    assert store.get("k") is None
    assert not store.exist("k")


def test_keys_hold_any_bytes(store: memcache.Store) -> None:
    keys = [b"\0", b"a\0b", bytes(range(256)), "grün"]
    assert list(store.put_batch(keys, [bytes([i]) * 3 for i in range(4)])) == [PutStatus.STORED] * 4
    assert store.get_batch(keys) == [bytes([i]) * 3 for i in range(4)]
    assert store.get("grün".encode()) == b"\3\3\3"


def test_an_empty_value_is_a_value(store: memcache.Store) -> None:
    assert store.put("empty", b"") is PutStatus.STORED
    assert store.get("empty") == b""
    assert store.get_into("empty", bytearray()) == 0


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<f8", "<c16", "?"])
def test_arrays_of_any_dtype(store: memcache.Store, dtype: str) -> None:
    source = (np.arange(60) % 7).astype(dtype).reshape(3, 20)
    target = np.zeros_like(source)
    assert store.put_from("array", source) is PutStatus.STORED
    assert store.get_into("array", target) == source.nbytes
    np.testing.assert_array_equal(target, source)


def test_a_non_contiguous_buffer_is_refused_by_its_strides(store: memcache.Store) -> None:
    strided = np.arange(20, dtype=np.int32)[::2]
    with pytest.raises(memcache.InvalidArgument, match=r"strides \[8\]"):
        store.put("strided", strided)
    with pytest.raises(memcache.InvalidArgument, match="not contiguous"):
        store.get_into("strided", np.asfortranarray(np.zeros((3, 4))))
    assert not store.exist("strided")


def test_a_read_only_target_is_refused(store: memcache.Store) -> None:
    store.put("k", b"1234")
    with pytest.raises(memcache.InvalidArgument, match="read-only"):
        store.get_into("k", b"4321")


def test_a_size_mismatch_leaves_the_target_alone(store: memcache.Store) -> None:
    store.put("k", b"1234")
    target = bytearray(b"abc")
    with pytest.raises(memcache.SizeMismatch, match="3 bytes"):
        store.get_into("k", target)
    assert target == b"abc"
    targets = [bytearray(4), bytearray(5)]
    statuses = store.get_into_batch(["k", "k"], targets)
    assert list(statuses) == [GetStatus.HIT, GetStatus.SIZE_MISMATCH]
    assert targets == [b"1234", bytes(5)]


def test_layers_make_one_object(store: memcache.Store) -> None:
    layers = [np.full(size, size % 256, dtype=np.uint8) for size in (1, 64, 0, 4097)]
    assert store.put_layers("layers", layers) is PutStatus.STORED
    assert store.get("layers") == b"".join(layer.tobytes() for layer in layers)
    back = [np.zeros_like(layer) for layer in layers]
    assert store.get_layers("layers", back) == 4162
    assert all((one == other).all() for one, other in zip(layers, back, strict=True))
    assert list(store.get_layers_batch(["layers", "none"], [back, back])) == [GetStatus.HIT, GetStatus.MISS]
    assert list(store.put_layers_batch(["l2", "layers"], [layers, layers])) == [PutStatus.STORED, PutStatus.PRESENT]


def test_each_key_of_a_batch_has_its_own_truth(store: memcache.Store) -> None:
    store.put("there", b"1")
    statuses = store.put_batch(["new", "there", "twice", "twice"], [b"n", b"x", b"a", b"b"])
    assert list(statuses) == [PutStatus.STORED, PutStatus.PRESENT, PutStatus.STORED, PutStatus.PRESENT]
    assert statuses.dtype == np.int32
    assert store.get("twice") == b"a"
    assert list(store.exist_batch(["new", "absent", "there"])) == [True, False, True]
    assert store.get_batch(["absent", "new", "new"]) == [None, b"n", b"n"]
    assert list(store.remove_batch(["new", "absent"])) == [True, False]


def test_an_empty_batch_is_nothing_to_do(store: memcache.Store) -> None:
    assert store.put_batch([], []).shape == (0,)
    assert store.get_batch([]) == []
    assert store.match_prefix([]) == 0
    assert store.exist_batch([]).shape == (0,)


def test_prefixes_end_at_the_first_gap(store: memcache.Store) -> None:
    keys = [f"block{i}" for i in range(10)]
    store.put_batch(keys[:4] + keys[6:], [b"x"] * 8)
    assert store.match_prefix(keys) == 4
    assert store.match_prefix_pending(keys) == (4, 4)
    found = store.match_prefix_async(keys)
    assert found.wait(5000)
    assert found.done()
    assert found.result() == (4, 4)
    assert list(store.exist_async(keys).result()) == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    assert (Presence.ABSENT, Presence.READABLE, Presence.PENDING) == (0, 1, 2), "the numbers of the native half"


def test_packed_keys_are_the_same_keys(store: memcache.Store) -> None:
    keys = np.arange(64, dtype=np.uint8).reshape(4, 16)
    store.put_batch(keys, [b"a", b"b", b"c", b"d"])
    assert store.get(keys[2].tobytes()) == b"c"
    assert store.match_prefix(keys[:, ::1]) == 4
    assert store.get_batch(keys[::2]) == [b"a", b"c"]


def test_remove_all_empties_the_pool(store: memcache.Store) -> None:
    store.put_batch(["a", "b"], [b"1", b"2"])
    assert store.remove_all() == 2
    assert store.status()["objects"] == 0


def test_a_full_pool_drops_what_was_used_longest_ago(store: memcache.Store) -> None:
    value = bytes(1 << 20)
    for i in range(48):  # 48 MiB into 32 MiB
        assert store.put(f"v{i}", value) is PutStatus.STORED
        assert store.get("v0") == value  # kept in use
    assert store.exist("v47")
    assert not store.exist("v1")
    assert store.status()["evicted_objects"] > 0


def test_status_and_stats_count(store: memcache.Store) -> None:
    store.put("k", bytes(1000))
    store.get("k")
    store.get("none")
    status = store.status()
    assert status["objects"] == 1
    assert status["capacity_bytes"] == 32 << 20
    assert 1000 <= status["used_bytes"] <= 2048
    assert len(status["nodes"]) == 1
    stats = store.stats()
    assert (stats["put_objects"], stats["put_bytes"], stats["get_objects"], stats["get_misses"]) == (1, 1000, 1, 1)
    assert stats["local_bytes"] == 2000


def test_fingerprints_that_differ_are_told_field_by_field(store: memcache.Store) -> None:
    ours, none = store.register_fingerprint("llama", {"dtype": "bf16", "heads": "8"})
    assert none == []
    again, none = store.register_fingerprint("llama", {"heads": "8", "dtype": "bf16"})
    assert (again, none) == (ours, [])
    other, differences = store.register_fingerprint("llama", {"dtype": "fp16", "heads": "8"})
    assert other != ours
    assert differences == [memcache.FieldDifference("dtype", "fp16", "bf16")]


def test_checksums_can_be_turned_off(meta: memcache.MetaService, store: memcache.Store) -> None:
    with memcache.Store(meta_address=meta.address, checksum="off") as plain:
        assert plain.put("k", b"1234") is PutStatus.STORED
        assert store.get("k") == b"1234"
        store.put("l", b"5678")
        assert plain.get("l") == b"5678"
