"""A request's parameters. Values come as JSON, or as text in a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..messages import short, some
from .errors import RefusedError

FUNCTIONS = ("softmax", "sigmoid", "none")


def check_known(parameters: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse unknown parameters, which would otherwise be ignored silently."""
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        names = some([short(name) for name in unknown])
        raise RefusedError(400, f"unknown parameter {names}: there are {', '.join(known)}")


def top_k(parameters: Mapping[str, Any], default: int = 5) -> int:
    value = parameters.get("top_k")
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RefusedError(400, f"top_k must be a whole number of at least 1, not {short(value)}")
    return value


def function_to_apply(parameters: Mapping[str, Any], default: str) -> str:
    """The name of the function that turns logits into scores."""
    value = parameters.get("function_to_apply")
    if value is None:
        return default
    if value not in FUNCTIONS:
        raise RefusedError(400, f"function_to_apply must be one of {', '.join(FUNCTIONS)}, not {short(value)}")
    return str(value)


def label(parameters: Mapping[str, Any], name: str) -> int | str | None:
    """A label's name or index. In a query, an index is written #INDEX."""
    value = parameters.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value[0] == "#" and value[1:].isdecimal() and len(value) < 11:
        return int(value[1:])
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RefusedError(400, f"{name} must be a label or its index, not {short(value)}")
    return value


def text(parameters: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str | None) -> str | None:
    """A parameter whose value must be one of the allowed words."""
    value = parameters.get(name)
    if value is None or value == "":
        return default
    if value not in allowed:
        raise RefusedError(400, f"{name} must be one of {', '.join(allowed)}, not {short(value)}")
    return str(value)


def switch(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise RefusedError(400, f"{name} must be true or false, not {short(value)}")
