"""Several processes: the same losses as one with the same batches, and a watchdog over the waiting."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from pictures import make_pictures

from mlx_convnextv2.training.progress import Progress, Row
from mlx_convnextv2.training.world import Watchdog, Watched, World

LAUNCH = Path(sys.executable).parent / "mlx.launch"
SETTINGS = [
    *("--full", "--epochs", "2", "--batch-size", "8", "--lr", "1e-3", "--mixup", "0.8", "--cutmix", "1"),
    *("--drop-path", "0.3", "--seed", "5"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """With one that cannot be read."""
    folder = make_pictures(tmp_path_factory.mktemp("data") / "photos", 11)
    (folder / "dots" / "broken.png").write_bytes(b"?")
    return folder


def start(processes, photos, tiny_folder, output, *more):
    command = [sys.executable, "-m", "mlx_convnextv2.train", "--data", photos, "--model", tiny_folder]
    command += ["--output", output, *SETTINGS, *more]
    if processes > 1:
        command[:1] = [LAUNCH, "-n", str(processes), "--backend", "ring", "--", sys.executable]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def losses(output):
    rows = csv.DictReader((output / "results.csv").open())
    return [[float(row[name] or 0) for name in ("train_loss", "val_loss", "val_top1", "val_top5")] for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not LAUNCH.exists(), reason="there is no mlx.launch")
def test_two_processes_have_the_losses_of_one_with_the_same_batches(photos, tiny_folder, tmp_path):
    results = [start(count, photos, tiny_folder, tmp_path / f"{count}") for count in (1, 2)]
    for result in results:
        assert result.returncode == 0, result.stderr
    alone, together = (losses(tmp_path / f"{count}") for count in (1, 2))
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    # one of them tells, warns and writes
    assert results[1].stdout.count("epoch   2") == 1
    assert results[1].stdout.count("3 classes, validation top-1") == 1
    assert results[1].stderr.count("left out, because they cannot be read") == 1
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        path.name for path in (tmp_path / "1").iterdir()
    )
    assert not (tmp_path / "2.run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not LAUNCH.exists(), reason="there is no mlx.launch")
def test_a_mistake_ends_all_processes_with_its_sentence(photos, tiny_folder, tmp_path):
    result = start(2, photos, tiny_folder, tmp_path / "out", "--batch-size", "9")
    assert "cannot be divided into 2 processes" in result.stderr + result.stdout
    assert not (tmp_path / "out").exists()


def test_alone_there_is_nothing_to_share():
    world = World()
    values = {"a": mx.ones(3)}
    assert world.share(8) == slice(0, 8)
    assert world.mean(values) is values
    assert world.from_first(values) is values
    assert world.sum(total := np.ones(3)) is total
    assert World(1, 4).share(8) == slice(2, 4)


def test_a_watchdog_ends_a_process_that_hangs_with_a_sentence():
    code = (
        "import time\nfrom mlx_convnextv2.training.world import Watchdog\n"
        "with Watchdog(0.5).watch():\n    time.sleep(600)\n"
    )
    begun = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 75
    assert "nothing happened for 0.5 seconds: a process hangs or is gone. Start all of them again" in result.stderr
    assert time.monotonic() - begun < 300


def test_a_watchdog_lets_a_process_that_works_work():
    watchdog = Watchdog(5)
    with watchdog.watch():
        for _ in range(3):
            watchdog.step()
            time.sleep(0.05)


def test_the_first_processs_weights_come_to_the_others_bit_for_bit(monkeypatch):
    monkeypatch.setattr(mx.distributed, "all_sum", lambda array: array)  # the others give zeros
    weights = {"a": mx.random.normal((1000,)), "b": mx.random.normal((3, 5))}
    received = World(0, 3).from_first(weights)
    assert all(np.array_equal(np.array(received[name]), np.array(weights[name])) for name in weights)


def test_processes_agree_where_all_have_the_same_alone(monkeypatch):
    monkeypatch.setattr(mx.distributed, "all_sum", lambda rows: mx.broadcast_to(rows[:1], rows.shape))  # they are alike
    assert World(0, 3).agree("the same")
    other: dict[str, mx.array] = {}

    def all_sum(rows):
        other.setdefault("row", rows[0])
        return mx.stack([rows[0], other["row"]])

    monkeypatch.setattr(mx.distributed, "all_sum", all_sum)
    assert World(0, 2).agree("first")
    assert not World(0, 2).agree("second")


def test_fitting_the_head_keeps_the_watchdog_quiet(monkeypatch):
    heard: list[str] = []
    watchdog = Watchdog(600)
    monkeypatch.setattr(watchdog, "step", lambda: heard.append("step"))
    Watched.without_rows(Watched(Progress(), watchdog)).row(Row(1, 0.0, 0.0, 0.0, 0.0))
    assert heard
