"""The client of a pool."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from memcache import _core
from memcache.completion import Completion
from memcache.config import StoreConfig
from memcache.errors import InvalidArgument, NoSpace, SizeMismatch, Timeout, TooLarge, Unavailable
from memcache.layout import KvLayout, TensorNumbers
from memcache.status import GetStatus, PutStatus

Key: TypeAlias = bytes | str
"""1 to 256 bytes, any bytes; ``str`` stands for its UTF-8."""
Keys: TypeAlias = Sequence[Key] | npt.NDArray[np.uint8]
"""Keys of one call, at most 65,536; as an array, shape ``(keys, key_bytes)``, dtype ``uint8``."""
Buffer: TypeAlias = Any
"""Host memory: ``bytes``, ``memoryview``, a numpy array or a torch CPU tensor of any dtype, C-contiguous."""
BlockIds: TypeAlias = Sequence[int] | npt.NDArray[np.signedinteger[Any]] | npt.NDArray[np.unsignedinteger[Any]]
"""Block numbers, one a key: a one-dimensional ``int64``, ``int32`` or ``uint32`` array, or a sequence of ``int``."""
Statuses: TypeAlias = npt.NDArray[np.int32]
"""One status a key, shape ``(keys,)``: the numbers of :class:`PutStatus`, :class:`GetStatus` or :class:`PinStatus`."""

PIN_MS_MAX = 30 * 24 * 3_600_000
"""Longest soft pin, in milliseconds."""


@dataclass(frozen=True)
class FieldDifference:
    """One field in which a fingerprint differs from one registered before. ``""``: that side has no such field."""

    name: str
    ours: str
    theirs: str


class Store:
    """A client of one pool: put, get, exist and remove, single and batched, and the block forms for KV caches.

    Opening does not fail when the MetaService is away: calls then say so at once, and work as soon as it is back.
    All methods may be called from any thread; all of them release the interpreter lock while they move bytes or wait,
    and every wait ends at ``timeout_ms`` (default: the setting of that name). A store must not be used across a
    ``fork``.

    Sources of a put must not change, and targets of a get must not be read, before the call is over.

    Batched forms raise only for wrong arguments (:class:`memcache.InvalidArgument`); what became of each key is its
    status. Single forms raise :class:`memcache.Unavailable`, :class:`memcache.Timeout`, :class:`memcache.NoSpace` and
    :class:`memcache.TooLarge` instead.
    """

    def __init__(self, config: StoreConfig | None = None, **overrides: Any) -> None:
        """Opens a store with ``config``, or with :meth:`StoreConfig.load` of ``overrides`` if there is none.

        Raises :class:`memcache.ConfigError` for a bad setting and :class:`memcache.MemCacheError` if memory to be lent
        cannot be had. Lending takes the time to touch the memory.
        """
        if config is not None and overrides:
            raise TypeError("give either a StoreConfig or keyword settings, not both")
        self._config = StoreConfig.load(**overrides) if config is None else config
        self._core = _core.Store(None, self._config.overrides())

    @property
    def config(self) -> StoreConfig:
        """The settings this store was opened with."""
        return self._config

    @property
    def meta_address(self) -> str:
        """Where the MetaService is, also in embedded mode."""
        return self._core.meta_address

    @property
    def embedded(self) -> bool:
        """Whether no address was configured, so that this process or a sibling hosts the MetaService."""
        return self._core.embedded

    def available(self) -> bool:
        """Whether the connection to the MetaService is believed to be up. Asks nobody."""
        return self._core.available()

    # --- single ---

    def put(
        self,
        key: Key,
        value: Buffer,
        timeout_ms: int | None = None,
        *,
        replica_num: int | None = None,
        preferred_nodes: Sequence[str] | None = None,
    ) -> PutStatus:
        """Stores ``value`` under ``key``: ``STORED``, or ``PRESENT`` if the key is readable already.

        ``replica_num``: replicas on distinct nodes, 1 to 8 (default: the setting of that name). The value is stored
        when one of them is; the pool makes the others. ``preferred_nodes``: ids as in :meth:`status`, to be used before
        all other nodes, in this order, where they have free space.
        """
        return self._put_result(
            self._core.put([key], [value], False, False, timeout_ms, replica_num, _nodes(preferred_nodes)),
            _nbytes(value),
        )

    def get(self, key: Key, timeout_ms: int | None = None) -> bytes | None:
        """The value of ``key``, or ``None`` if it is not in the pool."""
        return self._core.get([key], timeout_ms)[0]

    def put_from(self, key: Key, buffer: Buffer, timeout_ms: int | None = None) -> PutStatus:
        """:meth:`put` under the predecessor's name: stores the bytes of ``buffer``."""
        return self.put(key, buffer, timeout_ms)

    def get_into(self, key: Key, buffer: Buffer, timeout_ms: int | None = None) -> int | None:
        """Reads the value of ``key`` into ``buffer``; its length in bytes, or ``None`` if it is not in the pool.

        Raises :class:`memcache.SizeMismatch` if the value and the buffer have different lengths.
        """
        return _get_result(self._core.get_into([key], [buffer], False, timeout_ms), _nbytes(buffer))

    def put_layers(self, key: Key, buffers: Sequence[Buffer], timeout_ms: int | None = None) -> PutStatus:
        """Stores several buffers, in order, as one object."""
        return self._put_result(self._core.put([key], [buffers], True, False, timeout_ms), sum(map(_nbytes, buffers)))

    def get_layers(self, key: Key, buffers: Sequence[Buffer], timeout_ms: int | None = None) -> int | None:
        """Reads one object into several buffers, in order; its length in bytes, or ``None`` if it is not there."""
        return _get_result(self._core.get_into([key], [buffers], True, timeout_ms), sum(map(_nbytes, buffers)))

    def exist(self, key: Key, timeout_ms: int | None = None) -> bool:
        """Whether ``key`` is readable."""
        return bool(self._core.exist([key], timeout_ms)[0])

    def remove(self, key: Key, timeout_ms: int | None = None) -> bool:
        """Removes ``key``; whether it was readable. Readers under way finish undisturbed."""
        return bool(self._core.remove([key], timeout_ms)[0])

    # --- batched ---

    def put_batch(
        self,
        keys: Keys,
        values: Sequence[Buffer],
        timeout_ms: int | None = None,
        *,
        replica_num: int | None = None,
        preferred_nodes: Sequence[str] | None = None,
    ) -> Statuses:
        """Stores one value a key; a :class:`PutStatus` a key. A key given twice is stored once, the other is told.

        ``replica_num`` and ``preferred_nodes``: as for :meth:`put`.
        """
        return self._core.put(keys, values, False, False, timeout_ms, replica_num, _nodes(preferred_nodes))

    def get_batch(self, keys: Keys, timeout_ms: int | None = None) -> list[bytes | None]:
        """The value of each key, ``None`` for those not in the pool."""
        return self._core.get(keys, timeout_ms)

    def put_from_batch(self, keys: Keys, buffers: Sequence[Buffer], timeout_ms: int | None = None) -> Statuses:
        """:meth:`put_batch` under the predecessor's name."""
        return self.put_batch(keys, buffers, timeout_ms)

    def get_into_batch(self, keys: Keys, buffers: Sequence[Buffer], timeout_ms: int | None = None) -> Statuses:
        """Reads one value a key into its buffer; a :class:`GetStatus` a key."""
        return self._core.get_into(keys, buffers, False, timeout_ms)

    def put_layers_batch(
        self, keys: Keys, buffers: Sequence[Sequence[Buffer]], timeout_ms: int | None = None
    ) -> Statuses:
        """:meth:`put_layers` for several keys; a :class:`PutStatus` a key."""
        return self._core.put(keys, buffers, True, False, timeout_ms)

    def get_layers_batch(
        self, keys: Keys, buffers: Sequence[Sequence[Buffer]], timeout_ms: int | None = None
    ) -> Statuses:
        """:meth:`get_layers` for several keys; a :class:`GetStatus` a key."""
        return self._core.get_into(keys, buffers, True, timeout_ms)

    def exist_batch(self, keys: Keys, timeout_ms: int | None = None) -> npt.NDArray[np.bool_]:
        """Whether each key is readable, shape ``(keys,)``. One message."""
        return self._core.exist(keys, timeout_ms)

    def exist_async(self, keys: Keys, timeout_ms: int | None = None) -> Completion[npt.NDArray[np.uint8]]:
        """For each key a :class:`memcache.Presence`, without waiting."""
        return Completion(self._core.exist_async(keys, timeout_ms))

    def remove_batch(self, keys: Keys, timeout_ms: int | None = None) -> npt.NDArray[np.bool_]:
        """Removes keys; which were readable, shape ``(keys,)``."""
        return self._core.remove(keys, timeout_ms)

    def remove_all(self, timeout_ms: int | None = None) -> int:
        """Removes everything from the pool; the number of objects that were there."""
        return self._core.remove_all(timeout_ms)

    # --- pins ---

    def pin(
        self, keys: Keys, ttl_ms: int | None = None, *, hard: bool = False, timeout_ms: int | None = None
    ) -> Statuses:
        """Keeps readable keys from eviction; a :class:`memcache.PinStatus` a key.

        With ``ttl_ms`` (milliseconds, 1 to 30 days) softly: for so long, or until a put would have no room otherwise.
        With ``hard=True`` until :meth:`unpin`; keys for which a node's ``hard_pin_quota`` has no room are
        ``OVER_QUOTA``, and the first keys come first. Pinning again makes a pin longer or harder, never less. Pins
        belong to keys, not to who set them, and are gone after a restart of the MetaService.

        Raises :class:`memcache.InvalidArgument` unless exactly one of the two is given.
        """
        if hard == (ttl_ms is not None):
            raise InvalidArgument(f"ttl_ms = {ttl_ms}, hard = {hard}: want a time in milliseconds, or hard=True")
        if ttl_ms is not None and not 1 <= ttl_ms <= PIN_MS_MAX:
            raise InvalidArgument(f"ttl_ms = {ttl_ms}: want 1 to {PIN_MS_MAX} (30 days)")
        return self._core.pin(keys, ttl_ms, timeout_ms)

    def unpin(self, keys: Keys, timeout_ms: int | None = None) -> npt.NDArray[np.bool_]:
        """Ends pins; which keys had one, shape ``(keys,)``."""
        return self._core.unpin(keys, timeout_ms)

    # --- prefixes ---

    def match_prefix(self, keys: Keys, timeout_ms: int | None = None) -> int:
        """How many leading keys are readable: one message, however many keys."""
        return self._core.match_prefix(keys, timeout_ms)[0]

    def match_prefix_pending(self, keys: Keys, timeout_ms: int | None = None) -> tuple[int, int]:
        """How many leading keys are (readable, readable or being written)."""
        return self._core.match_prefix(keys, timeout_ms)

    def match_prefix_async(self, keys: Keys, timeout_ms: int | None = None) -> Completion[tuple[int, int]]:
        """:meth:`match_prefix_pending` without waiting."""
        return Completion(self._core.match_prefix_async(keys, timeout_ms))

    # --- blocks of a KV cache ---

    def register_layout(
        self, tensors: Iterable[npt.NDArray[Any] | TensorNumbers | Any], num_blocks: int | None = None
    ) -> KvLayout:
        """Registers the tensors of a KV cache, so that block ids alone name memory afterwards.

        ``tensors``: numpy arrays, torch CPU tensors or ``(address, shape, strides in bytes, bytes of an item)``, each
        with the block dimension first, of any strides. Their memory is kept alive by the layout; given as numbers, it
        is the caller's to keep. ``num_blocks``: the engine's number of blocks, by default the first dimension of the
        first tensor; a tensor with ``k`` times as many rows is one whose kernel splits a block into ``k`` rows.

        Raises :class:`memcache.InvalidArgument` naming the tensor for shapes that are no memory, elements that overlap,
        read-only arrays and memory the CPU cannot reach.
        """
        return KvLayout(self._core.register_layout(tensors, num_blocks))

    def put_blocks(
        self,
        layout: KvLayout,
        keys: Keys,
        block_ids: BlockIds,
        timeout_ms: int | None = None,
        *,
        exclusive: bool = True,
        replica_num: int | None = None,
        preferred_nodes: Sequence[str] | None = None,
    ) -> Statuses:
        """Stores blocks, one object a key; a :class:`PutStatus` a key.

        ``exclusive``: leave a key that another writer holds to that writer (``PENDING``) instead of racing it.
        ``replica_num`` and ``preferred_nodes``: as for :meth:`put`.
        Raises :class:`memcache.InvalidArgument` for an id outside the layout, before anything moves.
        """
        nodes = _nodes(preferred_nodes)
        return self._core.put_blocks(layout.core, keys, block_ids, exclusive, timeout_ms, replica_num, nodes)

    def get_blocks(self, layout: KvLayout, keys: Keys, block_ids: BlockIds, timeout_ms: int | None = None) -> Statuses:
        """Reads objects into blocks, one a key; a :class:`GetStatus` a key. A block whose status is not ``HIT`` holds
        nothing of use."""
        return self._core.get_blocks(layout.core, keys, block_ids, timeout_ms)

    def put_blocks_async(
        self,
        layout: KvLayout,
        keys: Keys,
        block_ids: BlockIds,
        timeout_ms: int | None = None,
        *,
        exclusive: bool = True,
        replica_num: int | None = None,
        preferred_nodes: Sequence[str] | None = None,
    ) -> Completion[Statuses]:
        """:meth:`put_blocks` without waiting. With the pool away every key is ``UNAVAILABLE``; nothing is raised."""
        nodes = _nodes(preferred_nodes)
        return Completion(
            self._core.put_blocks_async(layout.core, keys, block_ids, exclusive, timeout_ms, replica_num, nodes)
        )

    def get_blocks_async(
        self, layout: KvLayout, keys: Keys, block_ids: BlockIds, timeout_ms: int | None = None
    ) -> Completion[Statuses]:
        """:meth:`get_blocks` without waiting. With the pool away every key is ``UNAVAILABLE``; nothing is raised."""
        return Completion(self._core.get_blocks_async(layout.core, keys, block_ids, timeout_ms))

    def plan_blocks(self, layout: KvLayout, keys: Keys, block_ids: BlockIds) -> int:
        """Does everything a block call does before bytes move, and stops; the number of pieces. For benchmarks."""
        return self._core.plan_blocks(layout.core, keys, block_ids)

    # --- the pool ---

    def register_fingerprint(
        self, scope: str, fields: Mapping[str, str], timeout_ms: int | None = None
    ) -> tuple[bytes, list[FieldDifference]]:
        """Registers what engines must agree on to share objects.

        The 16-byte digest of ``scope`` and ``fields`` (the start of keys that only equals may read), and the fields in
        which it differs from the closest fingerprint that others registered under ``scope``.
        """
        entries = sorted(fields.items())
        found = self._core.register_fingerprint(scope, entries, timeout_ms)
        return fingerprint_digest(scope, fields), [FieldDifference(*difference) for difference in found]

    def status(self, timeout_ms: int | None = None) -> dict[str, Any]:
        """The pool: ``nodes`` (a dict each), ``objects``, ``capacity_bytes``, ``used_bytes``, ``epoch``, ``unrecorded``
        (replicas that a restart of the MetaService would lose), ``extra_replicas`` and ``extra_bytes`` (of hot objects,
        beyond what was asked for; in bytes of memory taken up), ...
        """
        return self._core.status(timeout_ms)

    @property
    def node_id(self) -> str | None:
        """The node this store lends memory as, in hexadecimal; ``None`` if it lends nothing."""
        return self._core.node_id

    def info(self, key: Key, timeout_ms: int | None = None) -> dict[str, Any]:
        """Everything that is known of a key, without touching it.

        ``state`` (``"readable"``, ``"being written"`` or ``"absent"``), ``payload_bytes``, ``writers``, ``replica_num``
        (as many as there should be), ``pin`` (``"soft"``, ``"hard"`` or ``None``), ``pin_left_ms`` (of a soft one) and
        ``replicas``: for each ``node``, ``name``, ``segment``, ``offset``, ``generation``, ``leases`` and whether its
        node is ``draining``.
        """
        return self._core.info([key], timeout_ms)[0]

    def drain(self, node: str, mode: str = "move", timeout_ms: int | None = None) -> dict[str, Any]:
        """Begins to empty a node, so that it can leave: it gets no new objects. Does not wait.

        ``node``: its id, as in :meth:`status`. ``mode``: ``"move"`` has other nodes copy the objects that are only
        there, as far as they have room; ``"evict"`` does the same, and where no node has room the coldest objects of
        all nodes are evicted until the rest fits, pinned ones never; ``"drop"`` lets them go; ``"cancel"`` ends it and
        the node stays; ``"look"`` changes nothing. A node that is drained leaves the pool by itself.

        The answer: ``state``; ``in_pool``, whether the node is still there; ``objects`` and ``left_bytes``, which are
        left, the bytes with what is written or still read; and since the drain began ``moved_objects`` and
        ``moved_bytes``, which are on other nodes now, ``dropped_objects`` and ``dropped_bytes``, which were the last of
        their keys and are lost. The states: ``"no"`` (not being emptied), ``"draining"``, ``"drained"`` (nothing is
        left). A look also tells of a node that is out of the pool, and the numbers then say how it was when it went:
        ``"drained"``, ``"left"`` (with what it held) or ``"lost"`` (it died, and what it held with it). The MetaService
        remembers that of the last 65,536 such nodes, until it is restarted; a restart ends drains, too.

        Raises :class:`memcache.InvalidArgument` where there is no such node, to look at or to empty.
        """
        return self._core.drain(node, mode, timeout_ms)

    def drain_own(self, timeout_ms: int | None = None) -> bool:
        """Has other nodes copy what only the memory of this store holds, which then leaves the pool.

        Whether nothing was left in time. The store goes on without lending. ``True`` where it lends nothing.
        """
        return self._core.drain_own(timeout_ms)

    def explain_plan(self, layout: KvLayout, block_ids: BlockIds, way: str = "get") -> list[dict[str, Any]]:
        """How these blocks would move between their memory and the pool, and why. Nothing is located and nothing moves.

        ``way``: ``"get"`` or ``"put"``. One plan for each protocol to a peer that is connected, or that may be used
        while none is. A plan has ``kinds`` (for objects of equal shape the predicted microseconds of each path, or why
        it is impossible, and the one ``chosen``), ``groups`` (what would be submitted) and ``text`` (a table to print).

        Raises :class:`memcache.InvalidArgument` for block ids outside the layout, and where a forced path does not
        lead to a peer.
        """
        return self._core.explain_plan(layout.core, block_ids, way)

    def stats(self) -> dict[str, int]:
        """What this store has done: objects, bytes, misses, failures, nanoseconds (``_ns``), bytes by protocol."""
        return dict(self._core.stats())

    def close(self, timeout_ms: int = 2000) -> bool:
        """Ends the store: waits for running transfers, takes back what was lent. Whether all transfers had ended."""
        return self._core.close(timeout_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put_result(self, statuses: Statuses, nbytes: int) -> PutStatus:
        status = PutStatus(int(statuses[0]))
        match status:
            case PutStatus.STORED | PutStatus.PRESENT | PutStatus.PENDING:
                return status
            case PutStatus.NO_SPACE:
                longest = self._most("longest_free_bytes", "; the longest free run has {} bytes")
                raise NoSpace(f"no node has room for {nbytes} bytes, even after eviction{longest}")
            case PutStatus.TOO_LARGE:
                largest = self._most("capacity_bytes", "; the largest has {} bytes")
                raise TooLarge(f"a value of {nbytes} bytes is larger than any segment of the pool{largest}")
            case PutStatus.TIMEOUT:
                raise Timeout(f"putting {nbytes} bytes took longer than its deadline")
            case _:
                raise Unavailable(f"{nbytes} bytes could not be stored: {status.name.lower()}")

    def _most(self, count: str, text: str) -> str:
        """The largest count of any node, in the text of an error; nothing where that cannot be told now."""
        try:
            most = max((node[count] for node in self.status()["nodes"]), default=0)
        except (Unavailable, Timeout):
            return ""
        return text.format(most)


def fingerprint_digest(scope: str, fields: Mapping[str, str]) -> bytes:
    """BLAKE2b, 16 bytes, over scope and fields in sorted order, each text preceded by its length."""
    digest = hashlib.blake2b(digest_size=16)
    for text in [scope, *(part for entry in sorted(fields.items()) for part in entry)]:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4, "little"))
        digest.update(encoded)
    return digest.digest()


def _nodes(nodes: Sequence[str] | None) -> list[str] | None:
    return None if nodes is None else list(nodes)


def _nbytes(buffer: Buffer) -> int:
    nbytes = getattr(buffer, "nbytes", None)
    return int(nbytes) if nbytes is not None else memoryview(buffer).nbytes


def _get_result(statuses: Statuses, nbytes: int) -> int | None:
    status = GetStatus(int(statuses[0]))
    match status:
        case GetStatus.HIT:
            return nbytes
        case GetStatus.MISS | GetStatus.CORRUPT:
            return None
        case GetStatus.SIZE_MISMATCH:
            raise SizeMismatch(f"the stored value has another length than the buffer's {nbytes} bytes")
        case GetStatus.TIMEOUT:
            raise Timeout(f"getting {nbytes} bytes took longer than its deadline")
        case _:
            raise Unavailable(f"{nbytes} bytes could not be read: {status.name.lower()}")
