"""How many threads compute, in a container too."""

from __future__ import annotations

import os

import pytest

from mlx_convnextv2.runtime import threads
from mlx_convnextv2.runtime.threads import available_cpus


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("10000 100000", 1), ("900000 50000", 8), ("?", 8)],
)
def test_no_more_cores_are_used_than_the_container_may(quota: str, cores: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(threads, "_QUOTA", file)
    assert available_cpus() == 8
    file.write_text(f"{quota}\n")
    assert available_cpus() == cores
