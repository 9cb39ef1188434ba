"""What a fault scenario is told and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    injected: str
    seen: str
    lost: str
    ok: bool


class LeftOut(Exception):
    """The scenario cannot be made on this machine; the message says why."""


@dataclass(frozen=True)
class Pace:
    """How long and how often; shorter with --quick."""

    seconds: float = 6.0
    cycles: int = 100


Scenario = Callable[[Pace], Outcome]
