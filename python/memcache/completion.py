"""Operations that are under way."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from memcache import _core

T = TypeVar("T")


class Completion(Generic[T]):
    """An operation under way. Resolves exactly once; may be asked from any thread, any number of times.

    Dropping it does not cancel the operation. The memory the operation reads or writes is kept alive until it has
    ended, and must not be touched by others before.
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

    def result(self, timeout_ms: int | None = None) -> T:
        """Waits and returns the result.

        Raises :class:`memcache.Timeout` if it is not there in time (it may still come), or what made the whole
        operation fail. Trouble with single keys is in the result, not raised.
        """
        return cast("T", self._inner.result(timeout_ms))
