"""A run that was interrupted ends as if it had not been: bit for bit, whenever it was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from pictures import make_pictures

from mlx_convnextv2 import train as command
from mlx_convnextv2.training import Progress, resume, train
from mlx_convnextv2.training.run_folder import run_folder

OPTIONS: dict[str, Any] = {
    "full": True,
    "epochs": 3,
    "batch_size": 8,
    "lr": 1e-3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.3,
    "save_every": 0.0,  # after every step
    "seed": 5,
}
STEPS = 3 * 3


class Interrupting(Progress):
    """Raises an error at a step, or when an epoch's row is told."""

    def __init__(self, step=None, row=None, error=KeyboardInterrupt):
        self.left, self.row_number, self.error = step, row, error

    def advance(self, images, loss=None, lr=None):
        if loss is not None and self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.error

    def row(self, row):
        if row.epoch == self.row_number:
            raise self.error


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def expected(photos, tiny_folder, tmp_path_factory):
    """The run that nothing interrupted."""
    return train(photos, tiny_folder, tmp_path_factory.mktemp("whole") / "out", **OPTIONS)


def same(trained, expected):
    """The weights are the same bytes, and so are the numbers of every epoch, but for the seconds."""

    def numbers(rows):
        return [{k: v for k, v in row.to_dict().items() if k != "seconds"} for row in rows]

    assert numbers(trained.rows) == numbers(expected.rows)
    ours, theirs = (run.path / "model.safetensors" for run in (trained, expected))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("step", "save_every"),
    [(4, 100.0), *(pytest.param(step, every, marks=pytest.mark.slow) for step in (0, 1, 8) for every in (0.0, 100.0))],
)
def test_an_interrupted_run_goes_on_where_it_was(photos, tiny_folder, tmp_path, expected, step, save_every):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(photos, tiny_folder, output, progress=Interrupting(step), **{**OPTIONS, "save_every": save_every})
    assert not output.exists()
    same(resume(output), expected)
    assert not run_folder(output).exists()


@pytest.mark.parametrize("row", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_fails_between_epochs_goes_on_too(photos, tiny_folder, tmp_path, expected, row):
    """An error saves nothing: what the last save left is gone on with."""
    output = tmp_path / "out"
    interrupting = Interrupting(row=row, error=OSError("the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        train(photos, tiny_folder, output, progress=interrupting, **OPTIONS)
    same(resume(output), expected)


@pytest.mark.slow
def test_a_run_can_be_interrupted_again_and_again(photos, tiny_folder, tmp_path, expected):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(photos, tiny_folder, output, progress=Interrupting(1), **OPTIONS)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            resume(output, progress=Interrupting(2))
    same(resume(output), expected)


def test_the_command_goes_on_and_says_what_cannot_be_changed(photos, tiny_folder, tmp_path, expected, capsys):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(photos, tiny_folder, output, progress=Interrupting(4), **OPTIONS)
    arguments = ["--output", str(output), "--resume"]
    assert command.main([*arguments, "--lr", "1"]) == 2
    assert "a run that is resumed has its options already: leave lr out" in capsys.readouterr().err
    again = ["--data", str(photos), "--model", str(tiny_folder), "--output", str(output), "--full"]
    assert command.main(again) == 2
    assert "holds an unfinished run: go on with --resume, or begin anew with --overwrite" in capsys.readouterr().err
    assert command.main([*arguments, "--workers", "1"]) == 0
    assert (output / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()


def test_another_set_of_images_is_not_gone_on_with(tiny_folder, tmp_path):
    data = make_pictures(tmp_path / "photos", 12)
    with pytest.raises(KeyboardInterrupt):
        train(data, tiny_folder, tmp_path / "out", progress=Interrupting(2), **OPTIONS)
    (data / "dots" / "0.png").unlink()
    with pytest.raises(ValueError, match="are not those of the run any more"):
        resume(tmp_path / "out")


@pytest.mark.slow
def test_an_image_that_was_broken_stays_left_out(tiny_folder, tmp_path):
    data = make_pictures(tmp_path / "photos", 12)
    (data / "dots" / "broken.png").write_bytes(b"?")
    runs = []
    for name, progress in (("whole", None), ("out", Interrupting(2))):
        try:
            runs.append(train(data, tiny_folder, tmp_path / name, progress=progress, **OPTIONS))
        except KeyboardInterrupt:
            runs.append(resume(tmp_path / name))
    same(runs[1], runs[0])


def test_a_state_that_is_damaged_is_named(photos, tiny_folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(photos, tiny_folder, tmp_path / "out", progress=Interrupting(2), **OPTIONS)
    state = run_folder(tmp_path / "out") / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read .*: start the run anew \(--overwrite\)"):
        resume(tmp_path / "out")
    assert train(photos, tiny_folder, tmp_path / "out", overwrite=True, **{**OPTIONS, "epochs": 1}).path.is_dir()


def test_the_place_of_a_run_is_its_own(photos, tiny_folder, tmp_path):
    other = tmp_path / "out.run"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no folder of a run"):
        train(photos, tiny_folder, tmp_path / "out", overwrite=True, **OPTIONS)
    assert (other / "letter.txt").read_text() == "dear"
    with pytest.raises(FileNotFoundError, match=r"there is no unfinished run at .*new\.run: leave --resume out"):
        resume(tmp_path / "new")

    class Second(Progress):
        def row(self, row):
            if row.epoch == 1:
                with pytest.raises(OSError, match="another process trains"):
                    train(photos, tiny_folder, tmp_path / "new", **OPTIONS)
                seen.append(row)

    seen: list[object] = []
    train(photos, tiny_folder, tmp_path / "new", progress=Second(), **{**OPTIONS, "epochs": 1})
    assert seen


def test_ctrl_c_before_the_first_state_leaves_nothing_to_resume(photos, tiny_folder, tmp_path):
    class Impatient(Progress):
        def begin(self, name, total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(photos, tiny_folder, tmp_path / "out", progress=Impatient(), **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_from_another_folder_without_its_broken_image_and_counts_its_steps_on(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    steps: list[int] = []

    class Writer:
        def __init__(self, folder):
            pass

        def add_scalar(self, name, value, step):
            if name == "train/step_loss":
                steps.append(step)

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    data = make_pictures(tmp_path / "photos", 12)
    (data / "dots" / "broken.png").write_bytes(b"?")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {**OPTIONS, "lr": 0, "report_to": "tensorboard"}
    with pytest.warns(UserWarning, match="left out"), pytest.raises(KeyboardInterrupt):
        train("photos", tiny_folder, "my model", progress=Interrupting(row=1), **options)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_convnextv2.training.bars.Bars.row", Interrupting(row=2).row)
        command.main(["--resume", "--output", "../my model"])
    assert "train --output '../my model' --resume goes on" in capsys.readouterr().err  # to paste into a shell
    assert [row.epoch for row in resume("../my model").rows] == [0, 1, 2, 3]
    assert steps == list(range(1, STEPS + 1))
    card = (tmp_path / "my model" / "README.md").read_text(encoding="utf-8")
    assert card.count("(kept)") == 1  # an epoch before the interruption


# Without ONNX Runtime, as in this process: its features of the frozen body differ in their last bits.
TRAIN = "import sys; sys.modules['onnxruntime'] = None; from mlx_convnextv2.train import main; sys.exit(main())"


def start(photos, tiny_folder, output, *more):
    settings = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in OPTIONS.items()
    ]
    first = ["--data", photos, "--model", tiny_folder, *settings]
    arguments = map(str, [*(more or first), "--output", output])
    # a session of its own, so that a signal reaches all that it has started
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_and_says_how_to_go_on(photos, tiny_folder, tmp_path, expected):
    output = tmp_path / "out"
    process = start(photos, tiny_folder, output)
    for line in process.stdout:
        if line.startswith("epoch   1"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (130, 0)
    assert "Traceback" not in errors
    if process.returncode:
        assert "--resume goes on" in errors
        process = start(photos, tiny_folder, output, "--resume")
        assert process.wait(timeout=600) == 0
    assert (output / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    assert not run_folder(output).exists()


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_as_if_it_had_not_been(photos, tiny_folder, tmp_path, expected):
    """kill -9 at random moments, from the first import to the last file, until ten have hit."""
    output = tmp_path / "out"
    moments = random.Random(11)
    started = time.monotonic()
    assert start(photos, tiny_folder, tmp_path / "timed").wait() == 0
    whole = time.monotonic() - started
    hits = done = 0
    while hits < 10:
        begun = (run_folder(output) / "run.json").is_file()
        if output.exists() and not begun:  # one run is over: the next begins anew
            assert (output / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
            done += 1
            output.rename(tmp_path / f"done-{done}")
        process = start(photos, tiny_folder, output, *(["--resume"] if begun else []))
        try:
            process.wait(timeout=moments.uniform(0.2, 0.9) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            hits += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    if output.exists() and not (run_folder(output) / "run.json").is_file():
        output.rename(tmp_path / "done")
    if (run_folder(output) / "run.json").is_file():
        resume(output)
    else:
        train(photos, tiny_folder, output, overwrite=True, **OPTIONS)
    assert (output / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    assert json.loads((output / "config.json").read_text())["id2label"]["0"] == "checks"
    assert np.isfinite([row.val_loss for row in expected.rows]).all()
