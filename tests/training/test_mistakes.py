"""What people do with `train` besides what it was made for."""

import os
import shutil
import sys
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from pictures import make_pictures

from mlx_convnextv2 import load, train as command
from mlx_convnextv2.training import Progress, resume, train
from mlx_convnextv2.training.options import read_config
from mlx_convnextv2.training.progress import Row
from mlx_convnextv2.training.run_folder import is_unfinished, run_folder
from mlx_convnextv2.training.world import Watchdog, Watched, World

FULL = {"full": True, "epochs": 2, "batch_size": 8}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than the runs of most tests."""
    monkeypatch.setattr("mlx_convnextv2.training.run.pictures_of", lambda *_: {})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "photos", 12)


class InterruptedAfter(Progress):
    """Interrupts a run where the row of this epoch is told."""

    def __init__(self, epoch):
        self.epoch = epoch

    def row(self, row):
        if row.epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_run_that_could_not_begin_leaves_the_place_free(photos, mlx_folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        train(photos, tmp_path / "absent", tmp_path / "out", **FULL)
    assert os.listdir(tmp_path) == []
    assert train(photos, mlx_folder, tmp_path / "out", **{**FULL, "epochs": 1}).path.is_dir()


def test_ctrl_c_before_the_first_state_leaves_nothing_to_resume(photos, mlx_folder, tmp_path):
    class Impatient(Progress):
        def begin(self, name, total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(photos, mlx_folder, tmp_path / "out", progress=Impatient(), **FULL)
    assert not is_unfinished(tmp_path / "out")
    assert not run_folder(tmp_path / "out").exists()


def test_a_run_with_a_broken_image_goes_on_from_another_folder(mlx_folder, tmp_path, monkeypatch):
    data = make_pictures(tmp_path / "photos", 12)
    (data / "dots" / "broken.png").write_bytes(b"?")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(KeyboardInterrupt):
        train("photos", mlx_folder, "out", progress=InterruptedAfter(1), **FULL)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [row.epoch for row in resume("../out").rows] == [0, 1, 2]


def test_the_card_marks_the_epoch_that_was_kept_before_an_interruption(photos, mlx_folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(photos, mlx_folder, tmp_path / "out", progress=InterruptedAfter(1), lr=0, **FULL)
    resume(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8").count("(kept)") == 1


def test_the_steps_of_a_resumed_run_are_numbered_on(photos, mlx_folder, tmp_path, monkeypatch):
    steps = []

    class Writer:
        def __init__(self, folder):
            pass

        def add_scalar(self, name, value, step):
            if name in ("train/step_loss", "val/loss"):
                steps.append((name, step))

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    with pytest.raises(KeyboardInterrupt):
        train(photos, mlx_folder, tmp_path / "out", progress=InterruptedAfter(1), report_to="tensorboard", **FULL)
    resume(tmp_path / "out")
    assert [step for name, step in steps if name == "train/step_loss"] == [1, 2, 3, 4, 5, 6]
    steps.clear()
    trained = train(photos, mlx_folder, tmp_path / "head", report_to="tensorboard")
    assert steps == [("val/loss", row.epoch) for row in trained.rows]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files must be Unicode elsewhere")
def test_a_folder_whose_name_is_not_unicode_can_be_trained_on(photos, mlx_folder, tmp_path):
    data = tmp_path / os.fsdecode(b"d\xff\xc3")
    shutil.copytree(photos, data)
    train(data, mlx_folder, tmp_path / "out")
    assert r"d\udcff\udcc3" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert read_config(tmp_path / "out" / "args.yaml")["data"] == str(data)


def test_home_may_be_written_as_a_tilde(photos, mlx_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").symlink_to(photos)
    monkeypatch.chdir(mlx_folder)
    train("~/pictures", mlx_folder, "~/out")
    assert load(tmp_path / "out")[0].config.num_labels == 3


def test_where_nothing_can_be_written_is_said_before_the_work(photos, mlx_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlx_convnextv2.training.run.open_start", lambda *_: pytest.fail("the work began"))
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o500)
    place = "/proc/out" if os.path.isdir("/proc/self") else tmp_path / "shut" / "out"  # root may write anywhere else
    assert command.main(["--data", str(photos), "--model", str(mlx_folder), "--output", str(place)]) == 2
    assert f"train: error: {place}: it cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [("--show-batch", "x.png"), ("--model", "m"), ("--data", "d"), ("--overwrite",)],
    ids=lambda more: more[0],
)
def test_resume_takes_nothing_that_it_would_not_heed(more, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--resume", "--output", "out", *more])
    assert "with --resume --output OUT alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: 2026", "data must be text, not 2026: write it in quotes"),
        ("output: [a]", "output must be text"),
        ("show-batch: 3", "show_batch must be text, not 3"),
        ("overwrite: 1", "overwrite must be true or false, not 1"),
        ("resume: 1", "there is no option 'resume'"),
    ],
)
def test_a_file_with_values_of_another_kind_is_one_sentence(photos, mlx_folder, tmp_path, capsys, text, message):
    (tmp_path / "options.yaml").write_text(f"{text}\n")
    given = {"data": photos, "model": mlx_folder, "output": tmp_path / "out"}
    arguments = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert command.main([*arguments, "--config", str(tmp_path / "options.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_file_may_write_numbers_as_people_do_and_ask_to_overwrite(photos, mlx_folder, tmp_path):
    (tmp_path / "options.yaml").write_text(f"l2: 1e-3\noverwrite: true\ndata: {photos}\noutput: {tmp_path / 'out'}\n")
    arguments = ["--config", str(tmp_path / "options.yaml"), "--model", str(mlx_folder)]
    assert [command.main(arguments), command.main(arguments)] == [0, 0]
    assert read_config(tmp_path / "out" / "args.yaml")["l2"] == 1e-3


@pytest.mark.parametrize("more", [(), ("--full",)])
def test_a_batch_is_shown_without_the_images_that_a_run_leaves_out(mlx_folder, tmp_path, capsys, more):
    data = make_pictures(tmp_path / "photos", 4)
    (data / "dots" / "broken.png").write_bytes(b"?")
    (data / "dots" / "empty.png").touch()
    arguments = ["--data", str(data), "--model", str(mlx_folder), "--val-split", "0.01", *more]
    assert command.main([*arguments, "--show-batch", str(tmp_path / "batch.png")]) == 0
    assert (tmp_path / "batch.png").is_file()
    assert "of train left out, because they cannot be read" in capsys.readouterr().err


def test_the_way_to_go_on_can_be_pasted_into_a_shell(photos, mlx_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "my model"
    with pytest.raises(KeyboardInterrupt):
        train(photos, mlx_folder, output, progress=InterruptedAfter(1), **FULL)
    monkeypatch.setattr("mlx_convnextv2.training.bars.Bars.row", InterruptedAfter(2).row)
    command.main(["--resume", "--output", str(output)])
    assert f"train --output '{output}' --resume goes on" in capsys.readouterr().err


def test_the_first_processs_weights_come_to_the_others_bit_for_bit(monkeypatch):
    monkeypatch.setattr(mx.distributed, "all_sum", lambda array: array)  # the others give zeros
    weights = {"a": mx.random.normal((1000,)), "b": mx.random.normal((3, 5))}
    received = World(0, 3).from_first(weights)
    assert all(np.array_equal(np.array(received[name]), np.array(weights[name])) for name in weights)


def test_processes_agree_where_all_have_the_same_alone(monkeypatch):
    monkeypatch.setattr(mx.distributed, "all_sum", lambda rows: mx.broadcast_to(rows[:1], rows.shape))  # they are alike
    assert World(0, 3).agree("the same")
    other = {}

    def all_sum(rows):
        other.setdefault("row", rows[0])
        return mx.stack([rows[0], other["row"]])

    monkeypatch.setattr(mx.distributed, "all_sum", all_sum)
    assert World(0, 2).agree("first")
    assert not World(0, 2).agree("second")


def test_fitting_the_head_keeps_the_watchdog_quiet():
    heard = []
    watchdog = Watchdog(600)
    watchdog.step = lambda: heard.append("step")
    Watched.without_rows(Watched(Progress(), watchdog)).row(Row(1, 0.0, 0.0, 0.0, 0.0))
    assert heard
