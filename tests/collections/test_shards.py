"""Shards: each name belongs to one, on every machine to the same, and mlx.launch's processes find theirs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from mlx_convnextv2.collections import Shard

NAMES = [f"{i % 50}/IMG_{i}.jpg" for i in range(8_000)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_name_is_in_exactly_one_shard_and_shards_are_about_equal(count: int) -> None:
    shards = [Shard(index, count) for index in range(1, count + 1)]
    owners = Counter(str(shard) for name in NAMES for shard in shards if shard.takes(name))
    assert owners.total() == len(NAMES)
    assert all(abs(owned - len(NAMES) / count) < 0.1 * len(NAMES) / count for owned in owners.values())


def test_a_shard_is_the_same_on_every_machine_and_in_every_release() -> None:
    names = ("a.jpg", "b.jpg", "sub/c.png", "caf\u00e9.jpg", "\udcff.jpg")
    taken = [name for name in names if Shard(1, 2).takes(name)]
    assert taken == ["b.jpg", "\udcff.jpg"]
    assert all(Shard(i, 8).takes("cafe\u0301.jpg") == Shard(i, 8).takes("caf\u00e9.jpg") for i in range(1, 9))


@pytest.mark.parametrize("text", ["", "2", "0/8", "9/8", "1/0", "-1/8", "2/8/3", "two/8", "\u0662/8", "1/9999999"])
def test_what_is_no_shard_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="shard is"):
        Shard.parse(text)


def test_a_shard_reads_as_it_is_written() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


@pytest.fixture
def listed(tmp_path: Path) -> str:
    (tmp_path / "hosts").write_text(json.dumps([["10.0.0.1:1"], ["10.0.0.2:1"], ["10.0.0.3:1"]]))
    return str(tmp_path / "hosts")


def test_each_backend_of_the_launcher_gives_the_shard(listed: str, tmp_path: Path) -> None:
    assert Shard.of_launch({}) is None
    assert Shard.of_launch({"MLX_RANK": "1", "MLX_HOSTFILE": listed}) == Shard(2, 3)
    assert Shard.of_launch({"MLX_RANK": "0", "MLX_IBV_DEVICES": listed}) == Shard(1, 3)
    assert Shard.of_launch({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}) == Shard(2, 2)
    assert Shard.of_launch({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}) == Shard(4, 4)
    (tmp_path / "alone").write_text("\n")
    assert Shard.of_launch({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "alone")}) is None


@pytest.mark.parametrize(
    "environment",
    [{"MLX_RANK": "1"}, {"MLX_RANK": "x", "MLX_WORLD_SIZE": "2"}, {"MLX_RANK": "2", "MLX_WORLD_SIZE": "2"}]
    + [{"MLX_RANK": "0", "MLX_HOSTFILE": "/gone"}],
)
def test_a_launcher_that_is_not_understood_is_a_sentence(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="--shard 2/8"):
        Shard.of_launch(environment)


@pytest.mark.slow
def test_the_processes_of_mlx_launch_are_the_shards(tmp_path: Path) -> None:
    launch = shutil.which("mlx.launch", path=str(Path(sys.executable).parent)) or pytest.skip("no mlx.launch")
    code = "from mlx_convnextv2.collections import Shard; print(Shard.of_launch())"
    command = [launch, "-n", "3", "--cwd", str(ROOT), "--python", sys.executable, "--", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert sorted(result.stdout.split()) == ["1/3", "2/3", "3/3"], result.stderr
