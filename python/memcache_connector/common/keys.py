"""Object keys of KV blocks, built as byte matrices.

A key is ``fingerprint (16 bytes) | slot (6 bytes) | block hash``. The fingerprint
(:func:`memcache.store.fingerprint_digest`) stands for everything that two
engines must have in common to read each other's blocks, the slot says which part of the model the object holds, the
block hash is the engine's own chained hash of the tokens. With the longest block hash in use (32 bytes) a key has
54 bytes; the pool's limit is 256.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FINGERPRINT_BYTES = 16
SLOT_BYTES = 6
KEY_BYTES_MAX = 256
BATCH_KEYS_MAX = 65_536
"""Most keys the pool takes in one call."""

KeyMatrix: TypeAlias = npt.NDArray[np.uint8]
"""Keys of one length: ``uint8`` of shape ``(number of keys, bytes of a key)``."""

_SLOT = struct.Struct(">HHH")


@dataclass(frozen=True, order=True)
class Slot:
    """The part of a model whose KV one object holds.

    ``group`` is the KV-cache group, ``pipeline`` the pipeline-parallel rank, ``shard`` the class of tensor-parallel
    ranks that hold identical bytes. Each is 0..65535.
    """

    group: int
    pipeline: int = 0
    shard: int = 0

    def encode(self) -> bytes:
        """The six bytes of this slot inside a key. Raises ``struct.error`` for a number outside 0..65535."""
        return _SLOT.pack(self.group, self.pipeline, self.shard)


def hash_matrix(hashes: Sequence[bytes]) -> KeyMatrix:
    """Block hashes of one length as a ``uint8`` matrix of shape ``(len(hashes), bytes of a hash)``.

    Raises ``ValueError`` when the lengths differ or a key made of them would be longer than 256 bytes.
    """
    if not hashes:
        return np.empty((0, 0), dtype=np.uint8)
    width = len(hashes[0])
    joined = b"".join(hashes)
    if width == 0 or len(joined) != width * len(hashes):
        raise ValueError("block hashes must be non-empty and of one length")
    if FINGERPRINT_BYTES + SLOT_BYTES + width > KEY_BYTES_MAX:
        raise ValueError(f"a block hash of {width} bytes makes a key longer than {KEY_BYTES_MAX} bytes")
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(hashes), width)


def slot_keys(prefix: bytes, slot: Slot, hashes: KeyMatrix) -> KeyMatrix:
    """Keys of the blocks ``hashes`` (shape ``(n, h)``) in one slot: shape ``(n, 22 + h)``."""
    head = np.frombuffer(prefix + slot.encode(), dtype=np.uint8)
    keys = np.empty((hashes.shape[0], head.size + hashes.shape[1]), dtype=np.uint8)
    keys[:, : head.size] = head
    keys[:, head.size :] = hashes
    return keys


def chain_keys(prefix: bytes, columns: Sequence[tuple[Slot, KeyMatrix]]) -> KeyMatrix:
    """Keys of a prefix chain that several slots must hold together, one row of slots after the other.

    Every entry of ``columns`` is a slot and the hashes of its blocks, shape ``(units, h)``: column ``c`` of unit
    ``u`` lands at row ``u * len(columns) + c``. So "how many leading keys are present", divided by the number of
    columns, is the number of leading units that every slot has.
    """
    units, width = columns[0][1].shape
    head_bytes = FINGERPRINT_BYTES + SLOT_BYTES
    keys = np.empty((units, len(columns), head_bytes + width), dtype=np.uint8)
    for column, (slot, hashes) in enumerate(columns):
        keys[:, column, :head_bytes] = np.frombuffer(prefix + slot.encode(), dtype=np.uint8)
        keys[:, column, head_bytes:] = hashes
    return keys.reshape(units * len(columns), head_bytes + width)
