"""20,000 photos, by processes that are killed and by a Ray cluster that loses a worker: exactly what one run gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from photo_files import make_photos

from mlx_convnextv2.collections.runs import find_parts
from mlx_convnextv2.demo import DEMO

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("twenty thousand")]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def start(images: Path, results: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlx_convnextv2.classify", images, "--demo", "--output", results, *arguments]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL)


def merged(run, results: Path) -> list[str]:
    """The lines of all parts, sorted."""
    joined = run("classify", "--merge", results, "--format", "jsonl")
    assert joined.returncode == 0, joined.stderr
    return sorted(joined.stdout.splitlines())


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("many photos"), 20_000)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory, run) -> list[str]:
    """The lines of one uninterrupted run."""
    results = tmp_path_factory.mktemp("whole") / "results"
    assert start(photos, results).wait(600) == 1  # for the file that is no image
    return merged(run, results)


def test_two_killed_processes_resume_to_exactly_the_single_run(photos, whole, tmp_path, run) -> None:
    results = tmp_path / "results"

    def start_two() -> list[subprocess.Popen]:
        return [start(photos, results, "--shard", f"{i}/2") for i in (1, 2)]

    pair = start_two()
    while len(find_parts(results) if results.exists() else []) < 6:
        assert [process.poll() for process in pair] == [None, None]
        time.sleep(0.05)
    for process in pair:
        process.kill()
        process.wait()
    held = {path: path.read_bytes() for _, _, path in find_parts(results)}
    assert {process.wait(600) for process in start_two()} <= {0, 1}
    assert {path: path.read_bytes() for path in held} == held
    assert merged(run, results) == whole


def workers_of(ancestor: int) -> Iterator[int]:
    """The processes of Ray that run the example's class."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            title = (folder / "cmdline").read_bytes()
            parent = folder.name
            while b"Classifier" in title and title.startswith(b"ray::") and int(parent) > 1:
                if int(parent) == ancestor:
                    yield int(folder.name)
                parent = (Path("/proc") / parent / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has just ended
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_ray_cluster_that_loses_a_worker_writes_exactly_the_single_run(photos, whole, tmp_path) -> None:
    pytest.importorskip("ray.data")
    parquet = pytest.importorskip("pyarrow.parquet")
    command = [ROOT / "examples" / "ray_classify.py", photos, "--output", tmp_path / "out", "--model", DEMO]
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    with (tmp_path / "log").open("w+") as log:
        options = {"cwd": tmp_path, "env": environment, "stdout": log, "stderr": log}
        example = subprocess.Popen([sys.executable, *map(str, command)], **options)
        while example.poll() is None and not list((tmp_path / "out").glob("*.parquet")):
            time.sleep(0.1)
        victims = list(workers_of(example.pid))
        for victim in victims[:1]:
            os.kill(victim, signal.SIGKILL)
        status = example.wait(600)
        log.seek(0)
        assert status == 0, log.read()
    assert len(victims) == 2
    lines: dict[str, dict] = {}
    for row in parquet.read_table(tmp_path / "out").to_pylist():
        line = lines.setdefault(row["image"], {"image": row["image"]})
        if row["error"] is not None:
            line["error"] = row["error"]
        else:
            found = {name: row[name] for name in ("label", "score", "index")}
            line.setdefault("predictions", []).append((row["rank"], found))
    for line in lines.values():
        if "predictions" in line:
            line["predictions"] = [found for _, found in sorted(line["predictions"], key=lambda pair: pair[0])]
    assert sorted(map(json.dumps, lines.values())) == [json.dumps(json.loads(line)) for line in whole]
