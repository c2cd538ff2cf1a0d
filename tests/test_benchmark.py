"""The command that measures: run for real on the digits checkpoint, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_convnextv2 import benchmark, load, save
from mlx_convnextv2.benchmarking import peers, plots
from mlx_convnextv2.benchmarking.exports import last_line
from mlx_convnextv2.benchmarking.measure import PeerError, Worker, agrees, alternate, contenders, spread
from mlx_convnextv2.benchmarking.peers import OURS, PEERS, why_not
from mlx_convnextv2.benchmarking.pictures import pixel_values
from mlx_convnextv2.benchmarking.scale import growth, parameters
from mlx_convnextv2.classify import DEMO

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits checkpoint as it is, one whose classifier is turned round, and images."""
    folder = tmp_path_factory.mktemp("digits")
    model, processor = load(DEMO)
    save(model, folder / "right", processor, format="huggingface")
    model.classifier.weight = -model.classifier.weight
    save(model, folder / "wrong", processor, format="huggingface")
    np.save(folder / "images.npy", pixel_values(3, 32, 32, 3))
    return folder


def test_the_digits_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    argv = ["--model", str(DEMO), "--batch-size", "1,3", "--runs", "2", "--json", str(file)]
    assert benchmark.main(argv) == 0
    report = json.loads(file.read_text())
    assert report["mode"] == "compare"
    assert [(r["contender"], r["batch"], r["dtype"]) for r in report["results"]] == [
        (OURS, 1, "float32"),
        (OURS, 3, "float32"),
    ]
    for result in report["results"]:
        seconds = result["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert result["images_per_s"] == pytest.approx(result["batch"] / seconds["median"])
        assert result["peak_bytes"] > 0
        assert result["ratio"] == {"median": 1, "min": 1, "max": 1}
    assert "images/s" in capfd.readouterr().out


def test_old_figures_stay_where_nothing_was_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    file.write_text("old")
    assert benchmark.main(["--model", "/nowhere", "--json", str(file)]) == 2
    assert "/nowhere" in capfd.readouterr().err
    assert file.read_text() == "old"


@pytest.mark.parametrize(
    "argv",
    [
        *(["--batch-size", "0"], ["--dtype", "int8"], ["--against", "x"], ["--runs", "no"]),
        *(["--size", "atto", "--model", "b"], ["--scale", "--cold-start"], ["--scale", "--model", "b"]),
        *(["--scale", "--image-size", "64"], ["--scale", "--dtype", "float32,float16"]),
        *(["--cold-start", "--batch-size", "2"], ["--cold-start", "--against", "timm"]),
    ],
)
def test_wrong_arguments(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(argv)
    assert stopped.value.code == 2
    assert "error" in capfd.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        *(["--size", "gigantic"], ["--scale", "--size", "gigantic"], ["--model", "no/such/folder"]),
        *(["--json", "no/such/folder/x.json"], ["--plot", "x.txt"], ["--plot", "no/such/folder/x.png"]),
    ],
)
def test_what_cannot_work_is_one_sentence(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    argv = argv if "--model" in argv or "--size" in argv else ["--model", str(DEMO), *argv]
    assert benchmark.main(argv) == 2
    out, error = capfd.readouterr()
    assert error.startswith("benchmark: error: ")
    assert error.count("\n") == 1
    assert out == "", "found before anything is measured"


@pytest.mark.skipif(HAS_MATPLOTLIB, reason="matplotlib is installed")
def test_a_plot_without_matplotlib_says_what_to_install(capfd: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--model", str(DEMO), "--plot", "x.png"]) == 2
    assert 'pip install "mlx_convnextv2[benchmark]"' in capfd.readouterr().err


def test_a_file_is_not_touched_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("kept")
    benchmark._check_writable(tmp_path / "old.json")
    benchmark._check_writable(tmp_path / "new.json")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("old.json", "kept")]


def test_who_is_left_out_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {**PEERS, "onnxruntime": ("json",), "coreml": ("json",), "timm": ("no_such",)})
    assert why_not("timm", "float32") == "pip install no_such"
    assert why_not("onnxruntime", "float16") is None
    assert "bfloat16" in str(why_not("onnxruntime", "bfloat16"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert "macOS" in str(why_not("coreml", "float32"))
    assert peers.expand(["transformers", "timm", "timm"]) == ["transformers", "timm"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why_not("coreml", "float32") is None
    assert peers.expand(["transformers", "timm"])[:2] == ["transformers", "transformers-mps"]


def test_other_weights_disagree(digits: Path) -> None:
    folders = [digits / name for name in ("right", "right", "wrong")]
    workers = [Worker(OURS, folder, digits / "images.npy", "float32") for folder in folders]
    try:
        results = alternate(workers, 2, None, 1, failed=pytest.fail)
    finally:
        for worker in workers:
            worker.close()
    assert [agrees(result, "float32") for result in results] == [True, True, False]


def test_peak_memory_is_not_that_of_the_command(digits: Path) -> None:
    held = np.ones(50_000_000)  # 400 MB, as after a large checkpoint was written
    worker = Worker(OURS, digits / "right", digits / "images.npy", "float32")
    try:
        assert 20e6 < worker.ask(1)["peak_bytes"] < held.nbytes / 2
    finally:
        worker.close()


def test_a_contender_that_cannot_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=f"{OURS} failed: FileNotFoundError"):
        Worker(OURS, tmp_path / "nothing", tmp_path / "images.npy", "float32")


def test_a_peer_that_cannot_load_is_left_out(digits: Path) -> None:
    said: list[str] = []
    with contenders([OURS, "nobody"], digits / "right", digits / "images.npy", "float32", said.append) as workers:
        assert [worker.name for worker in workers] == [OURS]
    assert said == ["nobody failed: KeyError: 'nobody'"]


def test_a_peer_that_fails_later_is_dropped_and_the_others_go_on(digits: Path) -> None:
    np.save(digits / "tiny.npy", pixel_values(1, 2, 2, 3))  # smaller than a patch
    said: list[str] = []
    files = [digits / "images.npy", digits / "tiny.npy", digits / "images.npy"]
    workers = [Worker(OURS, digits / "right", file, "float32") for file in files]
    last = workers[2]
    try:
        results = alternate(workers, 1, None, 1, said.append)
        assert len(results) == 2
        assert workers[1:] == [last]
        assert len(said) == 1
        assert said[0].startswith(f"{OURS} failed: ValueError")

        last._process.kill()
        assert len(alternate(workers, 1, None, 1, said.append)) == 1
        assert "killed" in said[1]
        workers[0]._process.kill()
        with pytest.raises(PeerError):
            alternate(workers, 1, None, 1, said.append)
    finally:
        for worker in workers:
            worker.close()


def test_the_last_line_of_a_traceback_is_the_error() -> None:
    assert last_line("Traceback:\n  File x\nValueError: no\n\n") == "ValueError: no"
    assert last_line("\n") == ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_a_worker_is_stopped_while_it_is_not_its_turn(digits: Path) -> None:
    worker = Worker(OURS, digits / "right", digits / "images.npy", "float32")
    try:
        worker.ask(1)
        stat = Path(f"/proc/{worker._process.pid}/stat")
        deadline = time.monotonic() + 600
        while stat.read_text().rpartition(") ")[2][0] != "T":
            assert time.monotonic() < deadline, "the worker still runs"
            time.sleep(0.01)
    finally:
        worker.close()


def test_the_pictures_differ_and_are_like_a_photo() -> None:
    images = pixel_values(12, 40, 60, 3)
    assert images.shape == (12, 40, 60, 3)
    assert images.dtype == np.float32
    assert np.abs(images).max() <= 1  # the processor's mean and deviation are a half
    assert len({image.tobytes() for image in images}) == 12
    steps = np.abs(np.diff(images, axis=2)).mean()
    assert 0 < steps < 0.25 * images.std(), "neighbouring pixels are alike, unlike those of noise"
    np.testing.assert_array_equal(images[:3], pixel_values(3, 40, 60, 3))
    assert pixel_values(1, 8, 8, 1).shape == (1, 8, 8, 1)


def test_growth_is_the_exponent() -> None:
    results = [
        {"contender": OURS, "axis": axis, "amount": amount, "seconds": spread([3 * amount**power])}
        for axis, power in (("pixels", 1.25), ("batch", 1.0))
        for amount in (1, 2, 8)
    ]
    results.append(
        {"contender": OURS, "axis": "size", "amount": 5, "seconds": spread([1.0])}
    )  # no line through a point
    lines = growth(results)
    assert [line["axis"] for line in lines] == ["pixels", "batch"]
    assert [line["exponent"] for line in lines] == pytest.approx([1.25, 1.0])


def test_parameters_are_counted(digits: Path) -> None:
    from mlx.utils import tree_flatten

    model, _ = load(digits / "right")
    assert parameters(digits / "right") == sum(array.size for _, array in tree_flatten(model.parameters()))


def test_cold_start_of_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", dict.fromkeys(PEERS, ("no_such",)))
    file = tmp_path / "figures.json"
    assert benchmark.main(["--model", str(DEMO), "--cold-start", "--runs", "1", "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())["results"]
    # The process imports MLX and reads a model, which this test's own process, far larger, must not be taken for.
    assert 20e6 < result["peak_bytes"] < 200e6
    assert result["seconds"]["median"] > 0
    assert "transformers is left out in float32: pip install no_such" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the terminal that ends it")
def test_a_stopped_worker_ends_when_the_command_is_killed(digits: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mlx_convnextv2.benchmarking.measure import Worker\n"
        f"d = Path({str(digits)!r})\nw = Worker('{OURS}', d / 'right', d / 'images.npy', 'float32')\n"
        "print(w._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 600
    while _alive(pid):
        assert time.monotonic() < deadline, "it is left behind"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(") ")[2][0] != "Z"


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs the extra `benchmark`")
@pytest.mark.parametrize("mode", ["compare", "cold-start", "scale"])
def test_plots(mode: str, tmp_path: Path) -> None:
    seconds = spread([0.1, 0.2, 0.4])
    common = {"seconds": seconds, "ratio": seconds, "dtype": "float32", "peak_bytes": 3}
    results = [
        {**common, "contender": contender, "batch": amount, "axis": axis, "amount": amount}
        for contender in (OURS, *PEERS)
        for axis in (("batch", "pixels", "size") if mode == "scale" else ("batch",))
        for amount in ((1,) if mode == "cold-start" else (1, 4, 9))
    ]
    report = {"mode": mode, "model": "m", "system": "s", "machine": "x", "image_size": [8, 8], "results": results}
    plots.draw({**report, "growth": growth(results)}, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(2**24)) > len(PEERS)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_peers_answer_as_we_do(peer: str, tmp_path: Path) -> None:
    if reason := why_not(peer, "float32"):
        pytest.skip(reason)
    file = tmp_path / "figures.json"
    argv = ["--size", "atto", "--batch-size", "2", "--runs", "1", "--against", peer, "--json", str(file)]
    assert benchmark.main(argv) == 0
    assert [r["contender"] for r in json.loads(file.read_text())["results"]] == [OURS, peer]


@pytest.mark.parity
@pytest.mark.slow
def test_cold_start_answers_are_alike(tmp_path: Path) -> None:
    expected = [peer for peer in peers.COLD_PEERS if why_not(peer, "float32") is None]
    if not expected:
        pytest.skip("no peer is installed")
    file = tmp_path / "figures.json"
    assert benchmark.main(["--model", str(DEMO), "--cold-start", "--runs", "1", "--json", str(file)]) == 0
    assert [r["contender"] for r in json.loads(file.read_text())["results"]] == [OURS, *expected]


@pytest.mark.slow
def test_scale_of_atto(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    argv = ["--scale", "--size", "atto", "--batch-size", "1,2", "--runs", "1", "--json", str(file)]
    assert benchmark.main(argv) == 0
    report = json.loads(file.read_text())
    assert {line["axis"] for line in report["growth"]} == {"batch", "pixels"}
    axes = [result["axis"] for result in report["results"]]
    assert {axis: axes.count(axis) for axis in axes} == {"size": 1, "batch": 2, "pixels": 5}
