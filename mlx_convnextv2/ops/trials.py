"""What is to be found out about an operation on a device, and what is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .proving import Arrays

PLAIN = "plain"
TIE = 0.03  # candidates that are slower by no more than this fraction count as equally fast


@dataclass(frozen=True)
class Operation:
    """An operation: its name, the shape and dtype of its input, and whatever else affects its speed."""

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
        candidates: their names. Of equally fast candidates the first is chosen. `PLAIN` is one of them, and trusted.
        rule: the candidate to use until something is measured.
        expected: computes the right results in float32.
        results: computes a candidate's results for the same inputs.
        allowed: how far a candidate's results may differ (see `prove`).
        chain: (candidate, links) -> a function that runs this number of links and waits. Each link needs the result of
            the one before.
        links: the smallest and the largest number of links in a chain.
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
        proven: the candidates with the same results as plain MLX.
        failures: by candidate, why it is not to be used.
        begun: by candidate, how many processes began to try it and did not finish.
        seconds: by candidate, the seconds of one link, once measured.
        given_up: never measure this operation again, because a whole budget was too small.
    """

    rule: str
    proven: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    given_up: bool = False

    @property
    def choice(self) -> str:
        """The fastest candidate. Of those within `TIE` of it, the rule's is preferred, then the first."""
        if self.seconds:
            limit = min(self.seconds.values()) * (1 + TIE)
            fast = [name for name, seconds in self.seconds.items() if seconds <= limit]
            return self.rule if self.rule in fast else fast[0]
        return PLAIN if self.rule in self.failures else self.rule

    @property
    def reason(self) -> str:
        """Why `choice` was chosen."""
        if self.seconds:
            return "measured"
        return f"{self.rule} is wrong here" if self.rule in self.failures else "the rule"

    @property
    def settled(self) -> bool:
        return bool(self.seconds) or self.given_up

    @classmethod
    def of(cls, rule: str, kept: Any, candidates: tuple[str, ...]) -> Verdict:
        """From the content of a file; anything that we could not have written is ignored."""
        try:
            verdict = cls(rule, **kept)
            names = [*verdict.proven, *verdict.failures, *verdict.begun, *verdict.seconds]
            numbers = all(type(value) is float and 0 < value < math.inf for value in verdict.seconds.values())
            counts = all(type(count) is int for count in verdict.begun.values())
            reasons = all(isinstance(reason, str) for reason in verdict.failures.values())
            kinds = type(verdict.proven) is list and type(verdict.given_up) is bool
            if numbers and counts and reasons and kinds and set(names) <= set(candidates):
                return verdict
        except (TypeError, AttributeError):
            pass
        return cls(rule)
