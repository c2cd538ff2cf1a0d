"""How far two computations of the same thing may lie apart, as a part of the largest magnitude, by dtype."""

from __future__ import annotations

UNIT_ROUNDOFFS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def tolerances(float32: float, roundings: int) -> dict[str, float]:
    """By the name of the dtype: what float32 is allowed, and the half types so many of their roundings."""
    return {"float32": float32, **{name: roundings * unit for name, unit in UNIT_ROUNDOFFS.items()}}


KERNEL = tolerances(1e-5, roundings=2)  # one operation, beside plain MLX in float32
CONTENDER = tolerances(1e-4, roundings=40)  # the logits of another library in the same dtype
