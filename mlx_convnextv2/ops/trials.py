"""What there is to find out about an operation on a device, and what is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .proving import Arrays

PLAIN = "plain"
TIE = 0.03  # what is slower by no more than this part is as fast


@dataclass(frozen=True)
class Operation:
    """What is computed: its name, the shape and dtype of its input, and whatever else decides how fast."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str = ""

    def __str__(self) -> str:
        return f"{self.name} of {'x'.join(map(str, self.shape))} in {self.dtype}"


@dataclass(frozen=True)
class Trial:
    """An operation, and how to try its candidates.

    Args:
        candidates: their names; of equally fast ones the first computes. `PLAIN` is one of them, and trusted.
        rule: the one that computes as long as nothing was measured.
        expected: the right results in float32.
        results: those of a candidate, for the same inputs.
        allowed: how far these may be away (see `prove`).
        chain: a function that runs so many links, each of which needs the result of the one before, and waits.
        links: the fewest and the most of a chain.
    """

    operation: Operation
    candidates: tuple[str, ...]
    rule: str
    expected: Callable[[], Arrays]
    results: Callable[[str], Arrays]
    allowed: Callable[[str], float]
    chain: Callable[[str, int], Callable[[], Any]]
    links: tuple[int, int] = (2, 16)


@dataclass
class Verdict:
    """What is known about an operation here.

    Args:
        rule: the static rule's candidate.
        proven: the candidates that compute what plain MLX does.
        failures: why the others do not.
        begun: how many processes began to try a candidate and came to no end.
        seconds: of one link, by candidate, once it was measured.
        given_up: it is not to be measured again, because a whole budget was too little.
    """

    rule: str
    proven: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    given_up: bool = False

    @property
    def choice(self) -> str:
        """Who computes: the fastest, or of those within `TIE` of it the rule's, or else the first."""
        if self.seconds:
            limit = min(self.seconds.values()) * (1 + TIE)
            fast = [name for name, seconds in self.seconds.items() if seconds <= limit]
            return self.rule if self.rule in fast else fast[0]
        return PLAIN if self.rule in self.failures else self.rule

    @property
    def reason(self) -> str:
        """Why the choice is that."""
        if self.seconds:
            return "measured"
        return f"{self.rule} is wrong here" if self.rule in self.failures else "the rule"

    @property
    def settled(self) -> bool:
        return bool(self.seconds) or self.given_up

    @classmethod
    def of(cls, rule: str, kept: Any, candidates: tuple[str, ...]) -> Verdict:
        """From what a file holds, of which nothing is believed that could not have been written by us."""
        try:
            verdict = cls(rule, **kept)
            names = [*verdict.proven, *verdict.failures, *verdict.begun, *verdict.seconds]
            numbers = all(type(value) is float and 0 < value < math.inf for value in verdict.seconds.values())
            counts = all(type(count) is int for count in verdict.begun.values())
            reasons = all(isinstance(reason, str) for reason in verdict.failures.values())
            if numbers and counts and reasons and set(names) <= set(candidates) and type(verdict.given_up) is bool:
                return verdict
        except (TypeError, AttributeError):
            pass
        return cls(rule)
