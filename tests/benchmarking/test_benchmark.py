"""The benchmark as a library and as a command: run for real on the digits checkpoint, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, parameters
from PIL import Image

from mlx_convnextv2 import benchmark, benchmarking, load, save
from mlx_convnextv2.benchmarking import cold_start, compare, measure, modes, peers, plots, scale, tables
from mlx_convnextv2.benchmarking.exports import last_line
from mlx_convnextv2.benchmarking.findings import (
    ColdStart,
    Contender,
    KernelCheck,
    Measurement,
    OperationTiming,
    Point,
    Spread,
    TunedOperation,
)
from mlx_convnextv2.benchmarking.measure import PeerError, Worker, alternate, contenders
from mlx_convnextv2.benchmarking.modes import growth
from mlx_convnextv2.benchmarking.peers import OURS, PEERS, why_not
from mlx_convnextv2.benchmarking.report import Report
from mlx_convnextv2.benchmarking.workload import pixel_values
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.terminal import DEFAULT_MODEL

MODES = ("compare", "cold-start", "scale", "self-check", "ops", "tune")
PLOTTED = MODES[:3]
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
DTYPES = ("float32", "float16", "bfloat16")
SPREAD = Spread(0.2, 0.1, 0.4)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits checkpoint as it is, one whose classifier is turned round, and images."""
    folder = tmp_path_factory.mktemp("digits")
    model, processor = load(DEMO)
    save(model, folder / "right", processor, format="huggingface")
    model.classifier.weight = -model.classifier.weight
    save(model, folder / "wrong", processor, format="huggingface")
    np.save(folder / "images.npy", pixel_values(3, 32, 32, 3))
    np.save(folder / "tiny.npy", pixel_values(1, 2, 2, 3))  # smaller than a patch
    return folder


@pytest.fixture
def start(digits: Path):
    """Start a worker of ours; all are closed at the end."""
    workers = []

    def start(checkpoint: str = "right", images: str = "images.npy") -> Worker:
        workers.append(Worker(OURS, digits / checkpoint, digits / images, "float32"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def measurement(contender: str = OURS, batch: int = 1, dtype: str = "float32", **others) -> Measurement:
    values = {"side": None, "peak_bytes": 3, "gpu_peak_bytes": None, "difference": 0.0, "top1_agreement": 1.0}
    return Measurement(contender, dtype, batch, seconds=SPREAD, ratio=SPREAD, **{**values, **others})


def some_report(mode: str, watch=None) -> Report:
    """A report of every contender with made-up figures."""
    report = Report(mode, "m", 3, (8, 8), "a GPU", watch=watch)
    if mode == "compare":
        report.add(*(Contender(name, "float32", 0.5, "cpu", {"torch": "2"}) for name in PEERS))
        for batch in (1, 8):
            report.add(*(measurement(name, batch, gpu_peak_bytes=2 * 10**9) for name in (OURS, *PEERS)))
    elif mode == "cold-start":
        report.add(*(ColdStart(name, SPREAD, SPREAD, 10**8, 0.5, True) for name in (OURS, *PEERS)))
    elif mode == "scale":
        for amount in (1, 4, 9):
            values = vars(measurement(batch=amount, side=224))
            report.add(*(Point(**values, size="huge", axis=a, amount=amount) for a in ("batch", "pixels", "size")))
        report.add(*growth(report.results))
    elif mode == "self-check":
        report.add(*(KernelCheck("depthwise_layer_norm_residual", (1, 56, 56, 128), t, 0.0) for t in DTYPES))
    elif mode == "tune":
        times = {"kernel, scaled weight": 12.345, "plain": 123.45}
        values = {"rule": "plain", "chosen": "kernel, scaled weight", "because": "measured"}
        names, shape, failures = ("depthwise_layer_norm", "gelu_grn"), (13, 56, 56, 128), {"compiled": "wrong"}
        report.add(*(TunedOperation(name, 16, shape, "float16", times, failures, **values) for name in names))
    else:
        operation = "depthwise + bias + LayerNorm"
        report.add(OperationTiming(operation, (16, 56, 56, 128), "float16", 12.345, 1.2345, 0.12345, "kernel"))
    return report


class TestLibrary:
    def test_one_call_measures_a_checkpoint_and_who_watches_sees_it_piece_by_piece(self) -> None:
        seen: list[object] = []
        report = compare(model=str(DEMO), batch_size=[1, 3, 3], runs=2, watch=lambda report, news: seen.append([*news]))
        assert seen == [report.contenders, report.results[:1], report.results[1:]]
        assert [(r.contender, r.batch, r.dtype) for r in report.results] == [(OURS, n, "float32") for n in (1, 3)]
        assert (report.image_size, report.left_out, report.failures) == ((32, 32), [], [])
        for result in report.results:
            assert 0 < result.seconds.min <= result.seconds.median <= result.seconds.max
            assert result.images_per_s == pytest.approx(result.batch / result.seconds.median)
            assert result.peak_bytes > 0
            assert result.ratio == Spread(1, 1, 1)
            assert result.agrees

    def test_a_model_or_a_size(self) -> None:
        for model, size in ((None, None), ("b", "atto")):
            with pytest.raises(ValueError, match="either a model"):
                compare(model=model, size=size)

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            *((compare, {"against": ["x"]}), (compare, {"dtype": ["int8"]}), (compare, {"size": "x"})),
            *((scale, {"size": "x"}), (scale, {"dtype": "x"}), (cold_start, {"against": ["timm"]})),
            *((benchmarking.time_operations, {"dtype": ["x"]}),),
        ],
    )
    def test_a_name_that_does_not_exist_is_a_sentence_that_lists_those_that_do(self, function, words) -> None:
        with pytest.raises(ValueError, match=r"'\w+'.*: choose (one of|from) (atto|plain|float32|transformers), "):
            function(**{"size": "atto", **words})

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_an_answer_agrees_within_the_tolerance_and_nan_never(self, dtype: str) -> None:
        within = {"float32": 1e-4, "float16": 40 * 2.0**-11, "bfloat16": 40 * 2.0**-8}[dtype]
        assert measurement(dtype=dtype, difference=within).agrees
        assert not measurement(dtype=dtype, difference=within * 1.01).agrees
        assert not measurement(dtype=dtype, difference=float("nan")).agrees
        assert measurement(dtype=dtype, top1_agreement=0.9).agrees == (dtype != "float32")

    def test_growth_is_the_exponent(self) -> None:
        def point(axis: str, amount: int, seconds: float) -> Point:
            values = {**vars(measurement()), "seconds": Spread.of([seconds])}
            return Point(**values, size="atto", axis=axis, amount=amount)

        powers = {"pixels": 1.25, "batch": 1.0}
        points = [point(axis, amount, 3 * amount**power) for axis, power in powers.items() for amount in (1, 2, 8)]
        lines = growth([*points, point("size", 5, 1.0)])  # no line through a point
        assert [line.axis for line in lines] == ["pixels", "batch"]
        assert [line.exponent for line in lines] == pytest.approx([1.25, 1.0])

    def test_parameters_are_counted(self, digits: Path) -> None:
        model, _ = load(digits / "right")
        assert modes.parameters(digits / "right") == sum(array.size for array in parameters(model).values())


class TestReport:
    @pytest.mark.parametrize("mode", MODES)
    def test_the_tables_fit_into_eighty_columns_and_are_what_was_shown(self, mode: str) -> None:
        shown: list[str] = []
        report = some_report(mode, lambda report, news: shown.append(tables.news(report, news)))
        text = str(report)
        assert max(map(len, text.splitlines())) <= 80
        assert sorted("\n".join(shown).splitlines()) == sorted(text.splitlines())

    @pytest.mark.parametrize("mode", MODES)
    def test_what_is_written_has_the_keys_of_every_mode_and_is_what_the_page_says(self, mode, tmp_path: Path) -> None:
        report = some_report(mode)
        report.write(tmp_path / "figures.json")
        read = json.loads((tmp_path / "figures.json").read_text())
        assert list(read) == list(some_report("compare").to_json())
        assert read["mode"] == mode
        assert len(read["results"]) == len(report.results) > 0
        page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
        described = set(re.findall(r"`(\w+)`", page[page.index("## The JSON") :]))
        assert {*read, *read["results"][0]} <= described

    def test_a_difference_that_is_no_number_is_null_and_no_agreement(self) -> None:
        values = measurement(difference=float("nan")).to_json()
        assert (values["difference"], values["agrees"]) == (None, False)

    def test_numbers_have_three_digits_and_no_exponent(self) -> None:
        values = (0.0, 0.00012, 0.12345, 1.2345, 9.9999, 99.96, 1234.5, float("nan"))
        assert [*map(tables.digits, values)] == ["0.00", "0.000", "0.123", "1.23", "10.0", "100", "1234", "nan"]

    @pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs the extra `benchmark`")
    @pytest.mark.parametrize("mode", [PLOTTED[0], *(pytest.param(m, marks=pytest.mark.slow) for m in PLOTTED[1:])])
    def test_plots(self, mode: str, tmp_path: Path) -> None:
        plots.draw(some_report(mode), tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as image:
            assert min(image.size) > 300
            colours = {colour for _, colour in image.convert("RGB").getcolors(2**24) or []}
        drawn = (OURS,) if mode == "scale" else (OURS, *PEERS)
        wanted = [plots._COLOURS[name] for name in drawn]
        assert {tuple(bytes.fromhex(colour[1:])) for colour in wanted} <= colours


class TestContenders:
    def test_other_weights_disagree_and_memory_is_not_that_of_the_command(self, start) -> None:
        held = np.ones(50_000_000)  # 400 MB, as after a large checkpoint was written
        results = alternate([start(), start("wrong")], 2, None, 1, failed=pytest.fail)
        assert [result.agrees for result in results] == [True, False]
        assert "answers differently" in measure.disagreement(results[1])
        assert 20e6 < results[0].peak_bytes < held.nbytes / 2

    def test_a_peer_that_cannot_load_is_left_out(self, digits: Path) -> None:
        said: list[str] = []
        with contenders([OURS, "nobody"], digits / "right", digits / "images.npy", "float32", said.append) as workers:
            assert [worker.name for worker in workers] == [OURS]
        assert said == ["nobody failed: KeyError: 'nobody'"]

    def test_a_peer_that_fails_later_is_dropped_and_the_others_go_on(self, start) -> None:
        said: list[str] = []
        ours, _ = workers = [start(), start(images="tiny.npy")]
        assert len(alternate(workers, 1, None, 1, said.append)) == 1
        assert workers == [ours]
        assert [line.startswith(f"{OURS} failed: ValueError") for line in said] == [True]
        if Path("/proc/self/stat").exists():  # it is stopped while it is not its turn
            wait_until(lambda: state(ours._process.pid) == "T")
        ours._process.kill()
        with pytest.raises(PeerError):
            alternate(workers, 1, None, 1, said.append)

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the terminal that ends it")
    def test_a_stopped_worker_ends_when_the_command_is_killed(self, digits: Path) -> None:
        code = (
            "import os, signal\nfrom pathlib import Path\nfrom mlx_convnextv2.benchmarking.measure import Worker\n"
            f"d = Path({str(digits)!r})\nw = Worker('{OURS}', d / 'right', d / 'images.npy', 'float32')\n"
            "print(w._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
        wait_until(lambda: state(int(done.stdout)) in ("Z", ""))

    def test_who_is_left_out_and_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needed = {"onnxruntime": ("json",), "coreml": ("json",), "timm": ("no_such",)}
        monkeypatch.setattr(peers, "PEERS", {**PEERS, **needed})
        assert why_not("timm", "float32") == "pip install no_such"
        assert why_not("onnxruntime", "float16") is None
        assert "bfloat16" in str(why_not("onnxruntime", "bfloat16"))
        monkeypatch.setattr(sys, "platform", "linux")
        assert "macOS" in str(why_not("coreml", "float32"))
        assert peers.expand(["transformers", "timm", "timm"]) == ["transformers", "timm"]
        monkeypatch.setattr(sys, "platform", "darwin")
        assert why_not("coreml", "float32") is None
        assert peers.expand(["transformers", "timm"])[:2] == ["transformers", "transformers-mps"]

    def test_the_last_line_of_a_traceback_is_the_error(self) -> None:
        assert last_line("Traceback:\n  File x\nValueError: no\n\n") == "ValueError: no"
        assert last_line("\n") == ""

    def test_the_pictures_differ_and_are_like_a_photo(self) -> None:
        images = pixel_values(12, 40, 60, 3)
        assert (images.shape, images.dtype) == ((12, 40, 60, 3), np.float32)
        assert np.abs(images).max() <= 1  # the processor's mean and deviation are a half
        assert len({image.tobytes() for image in images}) == 12
        steps = np.abs(np.diff(images, axis=2)).mean()
        assert 0 < steps < 0.25 * images.std(), "neighbouring pixels are alike, unlike those of noise"
        np.testing.assert_array_equal(images[:3], pixel_values(3, 40, 60, 3))
        assert pixel_values(1, 8, 8, 1).shape == (1, 8, 8, 1)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(pid: int) -> str:
    """The letter of a process's state, "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class TestCommand:
    @pytest.fixture(autouse=True)
    def _in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("mode", MODES)
    def test_a_mode_calls_one_function_with_its_own_words(self, mode: str, monkeypatch, capfd) -> None:
        calls: list[dict] = []

        def function(*, watch, **words) -> Report:
            calls.append(words)
            return some_report(mode, watch)

        name = "time_operations" if mode == "ops" else mode.replace("-", "_")
        monkeypatch.setattr(benchmarking, name, function, raising=False)
        assert benchmark.main([mode, "--json", "figures.json"]) == 0
        source = {"size": "tiny"} if mode == "scale" else {"model": DEFAULT_MODEL, "size": None}
        runs = {} if mode in ("self-check", "tune") else {"runs": 10}
        own: dict[str, dict] = {
            "compare": {"against": [], "batch_size": [1], "dtype": ["float32"], "image_size": None},
            "cold-start": {"against": ["transformers", "onnxruntime"]},
            "scale": {"against": [], "batch_size": [1, 2, 4, 8], "dtype": "float32"},
            "self-check": {"image_size": None},
            "ops": {"batch_size": [1], "dtype": ["float32"], "image_size": None},
            "tune": {"batch_size": [1, 8], "dtype": None, "image_size": None},
        }
        assert calls == [{**source, **runs, **own[mode]}]
        assert json.loads(Path("figures.json").read_text())["mode"] == mode
        assert "Spread" not in capfd.readouterr().out

    @pytest.mark.parametrize(
        "argv",
        [
            *([], ["--size", "atto"], ["--help-me"], ["compare", "--batch-size", "0"], ["compare", "--runs", "no"]),
            *(
                ["compare", "--size", "atto", "--model", "b"],
                ["scale", "--model", "b"],
                ["scale", "--image-size", "64"],
            ),
            *(["cold-start", "--batch-size", "2"], ["cold-start", "--dtype", "float32"]),
            *(["cold-start", "--image-size", "8"], ["self-check", "--against", "plain"], ["self-check", "--runs", "2"]),
            *(["self-check", "--plot", "x.png"], ["self-check", "--dtype", "float16"], ["ops", "--against", "plain"]),
            *(["self-check", "--batch-size", "2"], ["ops", "--plot", "x.png"], ["tune", "--runs", "2"]),
        ],
    )
    def test_a_mode_has_only_the_options_that_it_takes(self, argv: list[str], capfd) -> None:
        with pytest.raises(SystemExit) as stopped:
            benchmark.main(argv)
        assert stopped.value.code == 2
        error = capfd.readouterr().err
        assert "error: " in error
        assert all(mode in error for mode in MODES) or argv[0] in MODES

    @pytest.mark.parametrize(
        "argv",
        [
            *(["compare", "--size", "gigantic"], ["scale", "--size", "gigantic"], ["compare", "--model", "no/such"]),
            *(["compare", "--json", "no/x.json"], ["compare", "--plot", "x.txt"], ["compare", "--plot", "no/x.png"]),
            *(["compare", "--dtype", "int8"], ["compare", "--against", "x"], ["cold-start", "--against", "timm"]),
            *(["scale", "--dtype", "float32,float16"], ["ops", "--dtype", "int8"]),
        ],
    )
    def test_what_cannot_work_is_one_sentence(self, argv: list[str], capfd) -> None:
        argv = argv if {"--model", "--size", "scale"} & {*argv} else [*argv, "--model", str(DEMO)]
        assert benchmark.main(argv) == 2
        out, error = capfd.readouterr()
        assert error.startswith("benchmark: error: ")
        assert error.count("\n") == 1
        assert out == "", "found before anything is measured"

    def test_a_plot_without_matplotlib_says_what_to_install(self, monkeypatch, capfd) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert benchmark.main(["compare", "--model", str(DEMO), "--plot", "x.png"]) == 2
        assert 'pip install "mlx_convnextv2[benchmark]"' in capfd.readouterr().err

    def test_old_figures_stay_and_no_file_appears_where_nothing_was_measured(self) -> None:
        Path("old.json").write_text("old")
        for name in ("old.json", "new.json"):
            assert benchmark.main(["compare", "--model", "/nowhere", "--json", name]) == 2
        assert [(file.name, file.read_text()) for file in Path().iterdir()] == [("old.json", "old")]

    def test_an_interrupted_benchmark_prints_and_writes_what_it_measured(self, monkeypatch, capfd) -> None:
        def interrupted(workers, batch, *others):
            if batch == 2:
                raise KeyboardInterrupt
            return alternate(workers, batch, *others)

        monkeypatch.setattr("mlx_convnextv2.benchmarking.modes.alternate", interrupted)
        argv = ["compare", "--model", str(DEMO), "--batch-size", "1,2", "--runs", "1", "--json", "figures.json"]
        assert benchmark.main(argv) == 130
        assert [result["batch"] for result in json.loads(Path("figures.json").read_text())["results"]] == [1]
        out, error = capfd.readouterr()
        assert "images/s" in out
        assert error == ""

    def test_a_failure_is_said_and_is_status_1(self, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
        def function(*, watch, **words) -> Report:
            report = some_report("compare", watch)
            report.fail("timm failed")
            return report

        monkeypatch.setattr(benchmarking, "compare", function, raising=False)
        assert benchmark.main(["compare"]) == 1
        assert capfd.readouterr().err == "benchmark: timm failed\n"

    def test_cold_start_of_ours_alone(self, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
        monkeypatch.setattr(peers, "PEERS", dict.fromkeys(PEERS, ("no_such",)))
        assert benchmark.main(["cold-start", "--model", str(DEMO), "--runs", "1", "--json", "figures.json"]) == 0
        (result,) = json.loads(Path("figures.json").read_text())["results"]
        # The process imports MLX and reads a model, which this test's own process, far larger, must not be taken for.
        assert result["peak_bytes"] > 20e6
        assert result["seconds"]["median"] > 0
        assert "transformers is left out in float32: pip install no_such" in capfd.readouterr().err


@pytest.mark.parity
@pytest.mark.slow
def test_peers_answer_as_we_do() -> None:
    joined = [name for name in peers.expand([*PEERS]) if why_not(name, "float32") is None]
    if not joined:
        pytest.skip("no peer is installed")
    report = compare(size="atto", batch_size=[2], runs=1, against=[*PEERS])
    assert report.failures == []
    assert [result.contender for result in report.results] == [OURS, *joined]


@pytest.mark.parity
@pytest.mark.slow
def test_cold_start_answers_are_alike() -> None:
    expected = [peer for peer in peers.COLD_PEERS if why_not(peer, "float32") is None]
    if not expected:
        pytest.skip("no peer is installed")
    report = cold_start(model=str(DEMO), runs=1)
    assert [result.contender for result in report.results] == [OURS, *expected]
    assert report.failures == []


@pytest.mark.slow
def test_the_program_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/benchmark.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert json.loads(Path("figures.json").read_text())["mode"] == "compare"


@pytest.mark.slow
def test_scale_of_atto() -> None:
    report = scale(size="atto", batch_size=[1, 2], runs=1)
    assert {line.axis for line in report.growth} == {"batch", "pixels"}
    axes = [result.axis for result in report.results]
    assert {axis: axes.count(axis) for axis in axes} == {"size": 1, "batch": 2, "pixels": 5}
