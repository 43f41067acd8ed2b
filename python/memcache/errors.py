"""Exceptions. All derive from :class:`MemCacheError`; most also from the built-in they refine."""

from __future__ import annotations


class MemCacheError(Exception):
    """Anything that went wrong in the pool or its client."""


class InvalidArgument(MemCacheError, ValueError):
    """An argument is wrong; the text names it, its value and the limit. Nothing was moved."""


class ConfigError(InvalidArgument):
    """A setting is unknown or has a value that is not allowed; an unknown key is told with the nearest known one."""


class TooLarge(InvalidArgument):
    """A value is larger than any segment of the pool."""


class SizeMismatch(InvalidArgument):
    """The stored object has another length than the buffer it was to be read into; nothing was read."""


class Unavailable(MemCacheError, ConnectionError):
    """The MetaService, or the node that holds the object, cannot be reached."""


class Timeout(MemCacheError, TimeoutError):
    """The deadline passed first."""


class Busy(Unavailable):
    """As many puts and gets are under way as a store allows; the text names the limit. Wait for some to end."""


class NoSpace(MemCacheError):
    """No node has room for the value, even after eviction."""


class AddressInUse(MemCacheError, OSError):
    """The address to serve on belongs to another process."""


class ForkError(MemCacheError, RuntimeError):
    """The store was opened before a fork and is used in the child; open a new one there."""


class Closed(MemCacheError):
    """The store was closed."""
