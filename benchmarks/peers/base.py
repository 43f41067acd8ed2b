"""What a measurement asks of a system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .processes import Services
from .shapes import Cache


class Peer(ABC):
    """One system: somebody else's memory, put to and got from by this process.

    Whatever an engine would prepare once (registration, pointer lists) is prepared before the clock starts.
    """

    #: Whether objects have names and can be looked up.
    has_keys = True

    @abstractmethod
    def __init__(self, services: Services, pool_bytes: int, address: str | None) -> None:
        """Starts the services, or joins those at `address`."""

    @property
    def address(self) -> str | None:
        """What another process needs to join; None where that is not supported."""
        return None

    @abstractmethod
    def use(self, source: Cache, target: Cache) -> None:
        """Makes the caches known: puts read `source`, gets write `target`."""

    @abstractmethod
    def put(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        """Writes blocks; an error if any failed."""

    @abstractmethod
    def get(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        """Reads blocks; an error if any failed."""

    def exist(self, keys: Sequence[str]) -> int:
        """How many of the keys are there."""
        raise NotImplementedError

    @abstractmethod
    def clear(self) -> None:
        """Removes everything, where old objects would get in the way."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the services."""
