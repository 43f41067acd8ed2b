"""The truth about one key of a call. The numbers never change."""

from __future__ import annotations

from enum import IntEnum


class PutStatus(IntEnum):
    """What became of one key of a put. Negative: not stored."""

    STORED = 0
    """Written and sealed by this call."""
    PRESENT = 1
    """Readable already, or another writer sealed it first; nothing of this call's value was kept."""
    PENDING = 2
    """Another writer holds the key, and the call asked not to race it (``exclusive``)."""
    NO_SPACE = -1
    """No node has room, even after eviction."""
    TOO_LARGE = -2
    """Larger than any segment of the pool."""
    UNAVAILABLE = -3
    """The MetaService, or the node that was to hold it, cannot be reached."""
    TIMEOUT = -4
    """The deadline passed first."""
    INVALID = -5
    """The request for this key was malformed."""
    LOST = -6
    """The reservation ran out before the value was sealed."""
    CANCELLED = -8
    """The call was cancelled first; nothing of the value was kept."""


class GetStatus(IntEnum):
    """What became of one key of a get. Anything but ``HIT`` leaves nothing of use in the target."""

    HIT = 0
    """The bytes are in place and verified."""
    MISS = 1
    """Not in the pool, or gone before the read was over."""
    SIZE_MISMATCH = -1
    """Stored with another length than the target's; nothing was written to it."""
    UNAVAILABLE = -3
    """The MetaService, or the node that holds it, cannot be reached."""
    TIMEOUT = -4
    """The deadline passed first."""
    INVALID = -5
    """The request for this key was malformed."""
    CORRUPT = -7
    """Trailer or checksum did not match. Treat it as a miss."""
    CANCELLED = -8
    """The call was cancelled before the bytes were in place."""


class PinStatus(IntEnum):
    """What became of one key that was to be pinned. Anything but ``PINNED``: its pin is as before."""

    PINNED = 0
    """Kept from eviction, at least for the time asked."""
    ABSENT = 1
    """Not readable."""
    OVER_QUOTA = -1
    """Hard pins hold their part of a node's memory already: ``hard_pin_quota``, a setting of the MetaService."""


class Presence(IntEnum):
    """What the pool has under one key."""

    ABSENT = 0
    """Nothing."""
    READABLE = 1
    """A value."""
    PENDING = 2
    """Nothing yet; somebody is writing it."""
