"""Blocks of models as lists of discrete tensors, and the caches that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

KIB = 1 << 10
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """One block: runs of pieces, each run `(number of pieces, bytes of a piece)`."""

    name: str
    runs: tuple[tuple[int, int], ...]
    #: Blocks in a cache: enough that a pass over them does not stay in the processor's caches.
    blocks: int

    @property
    def pieces(self) -> int:
        """Pieces of one block."""
        return sum(count for count, _ in self.runs)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return sum(count * length for count, length in self.runs)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("61x128K+61x16K", ((61, 128 * KIB), (61, 16 * KIB)), 32),
        Shape("64x32K", ((64, 32 * KIB),), 64),
        Shape("64x4K", ((64, 4 * KIB),), 256),
        Shape("4096x256B", ((4096, 256),), 64),
    )
}


def one_run(block_bytes: int, blocks: int) -> Shape:
    """Blocks that are one piece each."""
    return Shape(f"1x{block_bytes // KIB}K", ((1, block_bytes),), blocks)


class Cache:
    """Tensors of an engine: for each run an array `[pieces, blocks, bytes of a piece]`, every page touched."""

    def __init__(self, shape: Shape, seed: int | None = None) -> None:
        self.shape = shape
        self.runs: list[Bytes] = []
        rng = np.random.default_rng(seed)
        for count, length in shape.runs:
            size = (count, shape.blocks, length)
            self.runs.append(np.zeros(size, np.uint8) if seed is None else rng.integers(0, 255, size, np.uint8))
        for run in self.runs:
            run[:, :, ::4096] += 0 if seed is None else 1

    @property
    def tensors(self) -> list[Bytes]:
        """Each piece's tensor, `[blocks, bytes of a piece]`, in the order of a block's bytes."""
        return [tensor for run in self.runs for tensor in run]

    def pieces(self, block: int) -> list[Bytes]:
        """The pieces of one block."""
        return [tensor[block] for tensor in self.tensors]

    def addresses(self, block: int) -> list[int]:
        """Where they start."""
        return [
            run.ctypes.data + piece * run.strides[0] + block * run.strides[1]
            for run in self.runs
            for piece in range(run.shape[0])
        ]

    @property
    def lengths(self) -> list[int]:
        """Bytes of each piece."""
        return [length for count, length in self.shape.runs for _ in range(count)]

    def clear(self) -> None:
        """Overwrites everything."""
        for run in self.runs:
            run.fill(0)

    def same(self, other: Cache) -> bool:
        """Whether both hold the same bytes."""
        return all(np.array_equal(one, two) for one, two in zip(self.runs, other.runs, strict=True))


def copy_piecewise(target: Cache, source: Cache, block: int) -> None:
    """Copies one block piece by piece on this thread; numpy calls the C library's memcpy for each piece."""
    for one, two in zip(target.runs, source.runs, strict=True):
        np.copyto(one[:, block], two[:, block])
