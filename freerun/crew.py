"""The generators of a run and what each of them has to do. Bookkeeping only: nobody is called."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from freerun.placement.base import Handle
from freerun.types import Request


@dataclass(slots=True)
class Member:
    """A generator: the requests that it is sent next, how many responses it has to make, the questions of an evaluation among
    them, and the versions that it may be computing with: while a call is under way, the one that it was sent, or still the one
    held before. One that is `leaving` is given nothing new."""

    handle: Handle
    outbox: list[Request] = field(default_factory=list)
    load: int = 0
    asked: list[Request] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    leaving: bool = False


class Crew:
    """The members by name. Those that leave stay until they have nothing to do."""

    def __init__(self, handles: Iterable[Handle]) -> None:
        self.members: dict[str, Member] = {handle.name: Member(handle) for handle in handles}

    @property
    def staying(self) -> list[str]:
        """Names of those that do not leave, the longest-serving first."""
        return [name for name, member in self.members.items() if not member.leaving]

    @property
    def done(self) -> list[str]:
        """Names of those that leave and have nothing to do."""
        return [name for name, member in self.members.items() if member.leaving and not (member.load or member.outbox)]

    def is_done(self, name: str) -> bool:
        """Whether `name` left, or may."""
        return name not in self.members or name in self.done

    def least_loaded(self) -> Member:
        """Who is to have the next request."""
        return min((self.members[name] for name in self.staying), key=lambda member: member.load)

    def spare(self, name: str, room: int) -> int:
        """What is left of an even share of `room` responses."""
        member = self.members[name]
        return 0 if member.leaving else max(room // len(self.staying), 1) - member.load

    def versions_in_use(self) -> set[int]:
        """Versions that a member may be computing with."""
        return set().union(*(member.versions for member in self.members.values()))
