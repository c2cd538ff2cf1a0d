"""How far two computations of the same thing may differ, as a fraction of the largest magnitude, by dtype."""

from __future__ import annotations

UNIT_ROUNDOFFS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def tolerances(float32: float, roundings: int) -> dict[str, float]:
    """By dtype name: the given tolerance for float32, and this number of roundings for the half types."""
    return {"float32": float32, **{name: roundings * unit for name, unit in UNIT_ROUNDOFFS.items()}}


KERNEL = tolerances(1e-5, roundings=2)  # one operation, compared with plain MLX in float32
CONVERTED = tolerances(1e-5, roundings=20)  # a converted checkpoint, compared with its source
TRACED = tolerances(1e-5, roundings=8)  # a graph, compared with the model that it was traced from
CONTENDER = tolerances(1e-4, roundings=40)  # the logits of another library in the same dtype
