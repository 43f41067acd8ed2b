"""Registered KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from memcache import _core

TensorNumbers: TypeAlias = tuple[int, Sequence[int], Sequence[int], int]
"""A tensor as numbers: (address, shape, strides in bytes, bytes of an item)."""


class KvLayout:
    """Where each block of a KV cache lies. Made by :meth:`memcache.Store.register_layout`; keeps the tensors alive.

    The bytes of a block's object are the tensors in the order given, and inside a tensor the order of memory.
    """

    __slots__ = ("core",)

    def __init__(self, core: _core.KvLayout) -> None:
        self.core = core

    @property
    def num_blocks(self) -> int:
        """Number of blocks; ids run from 0 to one less."""
        return self.core.num_blocks

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's object."""
        return self.core.block_bytes

    @property
    def pieces_per_block(self) -> int:
        """Contiguous pieces of one block, adjacent ones merged."""
        return self.core.pieces_per_block

    @property
    def byte_order(self) -> str:
        """Name of the order of an object's bytes. Caches of equal geometry and equal ``byte_order`` can read each
        other's objects, whatever their physical layout: for each tensor the non-block dimensions by falling stride
        (``"1.2.3"``), ``kN`` for the N rows of a split block; runs of equal tensors are named once."""
        return self.core.byte_order

    def pieces(self, block_id: int) -> list[tuple[int, int]]:
        """The pieces of one block as (address, bytes), in the order of the object."""
        return self.core.pieces(block_id)

    def plan(self, block_ids: Sequence[int] | npt.NDArray[np.signedinteger[Any]]) -> int:
        """Builds the piece lists of these blocks and moves nothing; the number of pieces."""
        return self.core.plan(block_ids)

    def __repr__(self) -> str:
        return repr(self.core)
