"""Operations that are under way."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from memcache import _core

T = TypeVar("T")


class Completion(Generic[T]):
    """An operation under way. Resolves exactly once; may be asked from any thread, any number of times.

    Dropping it does not cancel the operation. The memory the operation reads or writes is kept alive until it has
    ended, and must not be touched by others before: until :meth:`done`, or until :meth:`cancel` has said so.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: _core.Completion) -> None:
        self._inner = inner

    def done(self) -> bool:
        """Whether the result is there. Never waits."""
        return self._inner.done()

    def wait(self, timeout_ms: int | None = None) -> bool:
        """Waits up to ``timeout_ms`` milliseconds (default: the store's setting); whether the result is there."""
        return self._inner.wait(timeout_ms)

    def cancel(self, timeout_ms: int | None = None) -> bool:
        """Stops the operation as far as it can still be stopped, and waits until it leaves the memory alone.

        ``True``: no byte of the memory given to the operation is read or written any more, and none will be; it may be
        freed or used for something else. ``False``: ``timeout_ms`` (default: the store's setting) came first and the
        memory is **still in use**; ask again. Copies that had not begun never do. Those under way are waited for: over
        shared memory that takes about half a millisecond, over a network at most until the operation's own deadline.

        Leases and reservations are given back. The result tells the truth about every key: ``HIT`` what had arrived,
        ``STORED`` what was sealed, ``CANCELLED`` the rest. An operation that has ended stays as it is, and a lookup,
        which touches no memory, goes on. Raises :class:`memcache.ForkError` in a child of the process that started it.
        """
        return self._inner.cancel(timeout_ms)

    def result(self, timeout_ms: int | None = None) -> T:
        """Waits and returns the result.

        Raises :class:`memcache.Timeout` if it is not there in time (it may still come), or what made the whole
        operation fail. Trouble with single keys is in the result, not raised.
        """
        return cast("T", self._inner.result(timeout_ms))
