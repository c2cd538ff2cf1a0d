"""Whole runs: folders in, a checkpoint out, and what is said on the way."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, parameters
from pictures import CLASSES, make_pictures
from PIL import Image

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ImageClassifier,
    load,
    save,
    train as command,
)
from mlx_convnextv2.classify import main as classify
from mlx_convnextv2.conversion.convert import convert
from mlx_convnextv2.images.class_folders import find_splits
from mlx_convnextv2.training import Options, Progress, Row, train
from mlx_convnextv2.training.bars import Bars
from mlx_convnextv2.training.options import read_config
from mlx_convnextv2.training.pictures import draw_curves, pictures_of
from mlx_convnextv2.training.recipe import published

FULL: dict[str, Any] = {"full": True, "epochs": 2, "batch_size": 8}
ONE: dict[str, Any] = {**FULL, "epochs": 1}


pytestmark = pytest.mark.usefixtures("undrawn")


class Heard(Progress):
    def __init__(self):
        self.rows, self.losses = [], []

    def advance(self, images, loss=None, lr=None):
        if loss is not None:
            self.losses.append(loss)

    def row(self, row):
        self.rows.append(row)


def arguments(data, model, output, *more) -> list[str]:
    return ["--data", str(data), "--model", str(model), "--output", str(output), *map(str, more)]


def weights(folder) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in parameters(load(folder)[0]).items()}


def accuracy(folder, photos) -> float:
    val = find_splits(photos).val
    answers = ImageClassifier(folder)(list(val.files), top_k=1)
    return float(np.mean([answer[0]["index"] == label for answer, label in zip(answers, val.labels, strict=True)]))


class TestResult:
    def test_the_head_is_trained_from_folders_to_a_checkpoint_that_classifies(
        self, photos, tiny_folder, tmp_path, capsys
    ):
        output = tmp_path / "out"
        assert command.main(arguments(photos, tiny_folder, output)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith("l2 ") for line in lines[:-1])
        assert lines[-1].startswith(f"{output}: 3 classes, validation top-1 {accuracy(output, photos):.2%}")

        model, processor = load(output)
        assert list(model.config.id2label.values()) == list(CLASSES)
        assert model.config.label2id == {name: i for i, name in enumerate(CLASSES)}
        assert processor.size == {"shortest_edge": 32}
        before, after = weights(tiny_folder), weights(output)
        assert all(np.array_equal(after[name], before[name]) for name in after if not name.startswith("classifier"))
        assert sorted(file.name for file in output.iterdir()) == [
            *("README.md", "args.yaml", "config.json", "model.safetensors", "preprocessor_config.json", "results.csv"),
        ]
        rows = list(csv.DictReader((output / "results.csv").open()))
        assert len(rows) == len(lines) - 1
        assert f"{max(float(row['val_top1']) for row in rows):.2%}" in lines[-1]

        convert(output, tmp_path / "hf", to="huggingface")
        config = json.loads((tmp_path / "hf" / "config.json").read_text())
        assert config["id2label"] == {str(i): name for i, name in enumerate(CLASSES)}
        assert classify([str(photos / "dots" / "0.png"), "--model", str(output), "--format", "json"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert {p["label"] for p in json.loads(line)["predictions"]} == set(CLASSES)

        assert command.main(arguments(photos, tiny_folder, output)) == 2
        assert "exists already" in capsys.readouterr().err
        assert command.main(arguments(photos, tiny_folder, output, "--overwrite")) == 0

    def test_all_weights_are_trained_and_the_best_epoch_is_kept(self, photos, tiny_folder, tmp_path):
        heard = Heard()
        trained = train(photos, tiny_folder, tmp_path / "out", progress=heard, lr=1e-3, **FULL)
        assert [row.epoch for row in heard.rows] == [0, 1, 2] == [row.epoch for row in trained.rows]
        assert len(heard.losses) == 2 * 3  # 30 of 36 images in batches of 8
        assert trained.rows[1].train_loss == pytest.approx(np.mean(heard.losses[:3]))
        assert trained.best in trained.rows
        assert not any(row.better_than(trained.best) for row in trained.rows)
        assert trained.best.val_top1 == pytest.approx(accuracy(trained.path, photos))
        assert not (tmp_path / "out.run").exists()
        card = (tmp_path / "out" / "README.md").read_text()
        assert "all weights, 2 epochs of 3 steps of 8 images" in card
        assert "`checks` (10 + 2)" in card
        assert f"top-1 {trained.best.val_top1:.2%}" in card

    def test_one_seed_gives_one_run_and_another_gives_another(self, photos, tiny_folder, tmp_path):
        runs = [
            train(photos, tiny_folder, tmp_path / f"{i}", seed=seed, val_split=0.3, lr=1e-2, head="scaled", **FULL)
            for i, seed in enumerate((1, 1, 2))
        ]
        losses = [[row.train_loss for row in run.rows] for run in runs]
        assert losses[0] == losses[1] != losses[2]
        first, again, other = (weights(run.path) for run in runs)
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not np.array_equal(first["classifier.weight"], other["classifier.weight"])

    def test_a_backbone_in_memory_is_trained_at_another_size_of_image(self, photos, tiny_folder, tmp_path):
        start = load(tiny_folder, model_class=ConvNextV2Model)
        trained = train(photos, start, tmp_path / "out", image_size=48)
        assert trained.classes == CLASSES
        again = train(photos, tiny_folder, tmp_path / "again", image_size=48)
        assert again.rows[0].val_loss == pytest.approx(trained.rows[0].val_loss)
        assert load(tmp_path / "out")[1].size == {"shortest_edge": 48}

    def test_patience_ends_a_run_that_gets_no_better(self, photos, tiny_folder, tmp_path):
        options = {**FULL, "epochs": 9, "lr": 0.0, "ema": 0.0, "patience": 2}
        trained = train(photos, tiny_folder, tmp_path / "out", **options)
        assert [row.epoch for row in trained.rows] == [0, 1, 2]
        assert trained.best.epoch == 0

    def test_quantized_weights_keep_their_body_and_cannot_be_trained_in_full(self, photos, tmp_path):
        wide = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[32], depths=[1], num_stages=1))
        save(wide, tmp_path / "wide", ConvNextImageProcessor(size=32))
        convert(tmp_path / "wide", tmp_path / "small", quantize=True, q_group_size=32)
        trained = train(photos, tmp_path / "small", tmp_path / "out")
        assert ImageClassifier(trained.path)(photos / "dots" / "0.png", top_k=1)[0]["label"] in CLASSES
        with pytest.raises(ValueError, match=r"quantized weights cannot be trained: .*--dequantize"):
            train(photos, tmp_path / "small", tmp_path / "full", **FULL)

    def test_the_result_is_published_and_a_name_that_cannot_be_is_said_first(
        self, photos, tiny_folder, tmp_path, monkeypatch
    ):
        uploaded = []
        monkeypatch.setattr("mlx_convnextv2.training.run.upload", lambda path, repo: uploaded.append((str(path), repo)))
        train(photos, tiny_folder, tmp_path / "out", upload_repo="me/mine")
        assert uploaded == [(str(tmp_path / "out"), "me/mine")]
        with pytest.raises(ValueError, match="is not a Hub id"):
            train(photos, tiny_folder, tmp_path / "other", upload_repo="no id at all")
        assert not (tmp_path / "other").exists()


class TestImages:
    def test_broken_duplicate_and_scarce_images_are_named_before_training(self, tiny_folder, tmp_path, capsys):
        data = tmp_path / "data"
        make_pictures(data / "train", 11)
        make_pictures(data / "val", 3, seed=1)
        (data / "train" / "dots" / "broken.png").write_bytes(b"no image at all")
        (data / "val" / "dots" / "copy.png").write_bytes((data / "train" / "dots" / "3.png").read_bytes())
        (data / "train" / "stripes" / "twice.png").write_bytes((data / "train" / "checks" / "5.png").read_bytes())
        for file in (data / "train" / "checks").glob("[6-9].png"):
            file.unlink()
        assert command.main(arguments(data, tiny_folder, tmp_path / "out")) == 0
        errors = capsys.readouterr().err
        assert "train: warning: classes with fewer than 10 images to train with: checks (7)" in errors
        assert "1 image of val also in train, so that val looks better than it is: " in errors
        assert "val/dots/copy.png = " in errors
        assert "1 image in two classes: " in errors
        assert "1 of 31 images of train left out, because they cannot be read: " in errors
        assert "broken.png is not an image" in errors

    def test_a_class_of_which_nothing_can_be_read_ends_the_run(self, tiny_folder, tmp_path):
        data = make_pictures(tmp_path / "data", 4)
        for file in (data / "dots").iterdir():
            file.write_bytes(b"")
        with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(ValueError, match="no image of dots can"):
            train(data, tiny_folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_transparent_and_a_grey_picture_are_trained_on(self, tiny_folder, tmp_path):
        data = make_pictures(tmp_path / "data", 6)
        Image.new("L", (50, 30), 90).save(data / "dots" / "grey.png")
        Image.new("RGBA", (30, 50), (9, 9, 9, 0)).save(data / "dots" / "clear.png")
        assert np.isfinite(train(data, tiny_folder, tmp_path / "out", **ONE).rows[-1].train_loss or np.nan)

    @pytest.mark.skipif(sys.platform != "linux", reason="names of files must be Unicode elsewhere")
    def test_a_folder_whose_name_is_not_unicode_can_be_trained_on(self, photos, tiny_folder, tmp_path):
        data = tmp_path / os.fsdecode(b"d\xff\xc3")
        shutil.copytree(photos, data)
        train(data, tiny_folder, tmp_path / "out")
        assert r"d\udcff\udcc3" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert read_config(tmp_path / "out" / "args.yaml")["data"] == str(data)

    @pytest.mark.parametrize("more", [(), ("--full", "--mixup", "0.8", "--batch-size", "9")])
    def test_a_batch_is_shown_as_the_model_will_see_it(self, tiny_folder, tmp_path, capsys, more):
        data, file = make_pictures(tmp_path / "photos", 4), tmp_path / "batch.png"
        (data / "dots" / "broken.png").write_bytes(b"?")
        show = [*arguments(data, tiny_folder, tmp_path / "out", *more), "--val-split", "0.01", "--show-batch"]
        assert command.main([*show, str(file)]) == 0
        output = capsys.readouterr()
        assert output.out == f"{file}\n"
        assert "of train left out, because they cannot be read" in output.err
        picture = Image.open(file)
        assert picture.width > 3 * 32
        assert np.asarray(picture).std() > 20
        assert command.main([*show, "batch.txt"]) == 2
        assert "must end in .png or .jpg" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestOptionsOfTheCommand:
    def test_the_command_line_wins_over_the_file_which_may_ask_to_overwrite(self, photos, tiny_folder, tmp_path):
        file = tmp_path / "options.yaml"
        file.write_text(f"data: {photos}\nmodel: {tiny_folder}\nfull: true\nepochs: 7\nbatch-size: 6\nema: 0.5\n")
        output, again = tmp_path / "out", tmp_path / "again"
        assert command.main(["--config", str(file), "--output", str(output), "--epochs", "1", "--ema", "0"]) == 0
        written = read_config(output / "args.yaml")
        assert (written["epochs"], written["batch_size"], written["ema"], written["full"]) == (1, 6, 0, True)
        assert command.main(["--config", str(output / "args.yaml"), "--output", str(again)]) == 0
        assert (again / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
        file.write_text(f"l2: 1e-3\noverwrite: true\ndata: {photos}\noutput: {again}\n")
        assert command.main(["--config", str(file), "--model", str(tiny_folder)]) == 0
        assert read_config(again / "args.yaml")["l2"] == 1e-3

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--epochs", "0"], "epochs must be a whole number from 1"),
            (["--image-size", "4"], "image_size|too small"),
            (["--batch-size", "9", "--accumulate", "2", "--full"], "batch_size 9 cannot be divided"),
            (["--config", "absent.yaml"], "no such configuration file"),
            (["--model", "no/such/folder"], "no/such/folder"),
            (["--full", "--model", "/absent"], "/absent"),
            ("data: 2026", "data must be text, not 2026: write it in quotes"),
            ("output: [a]", "output must be text"),
            ("show-batch: 3", "show_batch must be text, not 3"),
            ("overwrite: 1", "overwrite must be true or false, not 1"),
            ("resume: 1", "there is no option 'resume'"),
        ],
    )
    def test_a_mistake_is_one_sentence_and_leaves_nothing(self, photos, tiny_folder, tmp_path, capsys, more, message):
        if isinstance(more, str):
            (tmp_path / "options.yaml").write_text(f"{more}\n")
            more = ["--config", str(tmp_path / "options.yaml")]
        assert command.main(arguments(photos, tiny_folder, tmp_path / "out", *more)) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert len(errors) == 1, errors
        assert re.search(message, errors[0])
        assert errors[0].startswith("train: error: ")
        assert not {"out", "out.run"} & {file.name for file in tmp_path.iterdir()}

    def test_what_is_missing_or_unheeded_shows_the_usage(self, capsys):
        both = ["--output", "x", "--resume"]
        for argv in ([], ["--data", "x"], ["--output", "x"], ["--resume"], [*both, "--data", "x"]):
            with pytest.raises(SystemExit, match=r"^2$"):
                command.main(argv)
            assert "give --data DIR and --output OUT" in capsys.readouterr().err
        for more in (["--show-batch", "x.png"], ["--model", "m"], ["--overwrite"]):
            with pytest.raises(SystemExit, match=r"^2$"):
                command.main([*both, *more])
            assert "with --resume --output OUT alone" in capsys.readouterr().err

    def test_the_help_names_every_option(self, capsys):
        with pytest.raises(SystemExit, match=r"^0$"):
            command.main(["--help"])
        text = capsys.readouterr().out
        for name in Options.__dataclass_fields__:
            assert f"--{name.replace('_', '-')}" in text
        assert text.rstrip().splitlines()[-1].strip().startswith("python -m mlx_convnextv2.classify")

    def test_home_may_be_written_as_a_tilde(self, photos, tiny_folder, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "pictures").symlink_to(photos)
        monkeypatch.chdir(tiny_folder)
        train("~/pictures", tiny_folder, "~/out")
        assert load(tmp_path / "out")[0].config.num_labels == 3

    def test_where_nothing_can_be_written_is_said_before_the_work(
        self, photos, tiny_folder, tmp_path, monkeypatch, as_everybody, capsys
    ):
        monkeypatch.setattr("mlx_convnextv2.training.run.open_start", lambda *_: pytest.fail("the work began"))
        (tmp_path / "shut").mkdir(mode=0o500)
        place = tmp_path / "shut" / "out"
        assert command.main(arguments(photos, tiny_folder, place)) == 2
        assert f"train: error: {place}: it cannot be written" in capsys.readouterr().err

    def test_options_that_need_full_are_said_to_do_nothing_without_it(self, photos, tiny_folder, tmp_path):
        with pytest.warns(UserWarning, match=r"where epochs, lr does nothing: add full \(--full\)"):
            train(photos, tiny_folder, tmp_path / "out", epochs=3, lr=1e-3)


class TestShown:
    def test_curves_and_confusions_are_drawn_where_matplotlib_is_there(
        self, photos, tiny_folder, tmp_path, monkeypatch
    ):
        pytest.importorskip("matplotlib")
        monkeypatch.setattr("mlx_convnextv2.training.run.pictures_of", pictures_of)
        train(photos, tiny_folder, tmp_path / "out")
        for name in ("results.png", "confusion_matrix.png"):
            assert Image.open(tmp_path / "out" / name).width > 500
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        train(photos, tiny_folder, tmp_path / "without")
        assert not list((tmp_path / "without").glob("*.png"))

    @pytest.mark.filterwarnings("error")
    def test_epochs_on_the_axis_are_whole_and_a_penalty_of_zero_can_be_drawn(self, monkeypatch):
        figure = pytest.importorskip("matplotlib.figure")
        rows = [Row(epoch, 1.0, 1.0, 0.5, 0.5) for epoch in range(3)]
        assert draw_curves([replaced := Row(1, 1.0, 1.0, 0.5, 0.5, l2=0.0)], replaced).startswith(b"\x89PNG")
        ticks: list[float] = []
        monkeypatch.setattr(
            figure.Figure, "savefig", lambda self, *_, **__: ticks.extend(t for a in self.axes for t in a.get_xticks())
        )
        draw_curves(rows, rows[1])
        assert ticks
        assert all(tick == round(tick) for tick in ticks)

    def test_numbers_go_to_tensorboard_and_wandb(self, photos, tiny_folder, tmp_path, monkeypatch):
        logged: list[tuple] = []
        closed: list[str] = []

        class Writer:
            def __init__(self, folder):
                self.folder = folder

            def add_scalar(self, name, value, step):
                logged.append((self.folder, name, value, step))

            def close(self):
                closed.append("tensorboard")

        class Run:
            def log(self, values, step):
                logged.extend(("wandb", name, value, step) for name, value in values.items())

            def finish(self):
                closed.append("wandb")

        def init(project, name, config):
            assert (project, name, config["epochs"]) == ("mlx_convnextv2", "out", 1)
            return Run()

        monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
        trained = train(photos, tiny_folder, tmp_path / "out", report_to="tensorboard, wandb", **ONE)
        assert closed == ["tensorboard", "wandb"]
        for sink in ("wandb", f"{tmp_path / 'out'}.tensorboard"):
            own = [(name, value, step) for where, name, value, step in logged if where == sink]
            assert ("val/loss", trained.rows[1].val_loss, 3) in own
            assert [step for name, _, step in own if name == "train/step_loss"] == [1, 2, 3]
        logged.clear()
        head = train(photos, tiny_folder, tmp_path / "head", report_to="tensorboard")
        steps = [step for _, name, _, step in logged if name in ("train/step_loss", "val/loss")]
        assert steps == [row.epoch for row in head.rows]

        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ValueError, match=r'report_to needs wandb: pip install "mlx-convnextv2\[report\]"'):
            train(photos, tiny_folder, tmp_path / "none", report_to="wandb")
        with pytest.raises(ValueError, match="report_to must be tensorboard, wandb or both"):
            train(photos, tiny_folder, tmp_path / "none", report_to="excel")

    def test_a_terminal_shows_loss_and_rate_and_a_line_for_each_epoch(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        lines: list[object] = []
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        bars = Bars(lines.append)
        bars.begin("epoch 1/2", 64)
        bars.advance(32, loss=1.25, lr=1e-3)
        time.sleep(0.15)  # tqdm draws ten times a second
        bars.advance(32, loss=1.5, lr=1e-3)
        bars.row(Row(1, 1.375, 1.0, 0.5, 0.75, lr=1e-3, seconds=2.0))
        bars.close()
        for words in ("epoch 1/2", "loss 1.", "lr 1.0e-03", "images/s"):
            assert words in terminal.getvalue()
        assert [str(line) for line in lines] == [
            "epoch   1  train loss 1.3750  val loss 1.0000  top-1 50.00%  top-5 75.00%  lr 1.00e-03  2.0 s"
        ]


def test_the_page_on_training_says_commands_that_exist_and_the_recipe_as_it_is():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    lines = re.findall(r"-m mlx_convnextv2\.train (.*)$", page, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        command.build_parser().parse_args(line.split())
    rows = {row[0]: row[1:] for row in re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)}
    for column, size in enumerate(("nano", "tiny", "base")):
        authors = published(ConvNextV2Config.from_size(size))
        for name, value in (
            ("learning rate at 1024 images; below, with the square root of the batch", f"{authors.lr:g}"),
            ("warm-up, share of the epochs; then a cosine", f"{100 * authors.warmup:.0f}"),
            ("weight decay; none for norms, biases and GRN", f"{authors.weight_decay:g}"),
            ("drop path", f"{authors.drop_path:g}"),
            ("label smoothing", f"{authors.label_smoothing:g}"),
        ):
            shown = rows[name][column]
            assert float(shown.removesuffix(" %")) == float(value), (size, name)
        assert rows["mixup / CutMix"][column] == f"{authors.mixup:g} / {authors.cutmix:.1f}".replace("0 / 0.0", "0 / 0")
        assert rows["layer decay"][column].startswith(f"{authors.layer_decay:g} a ")
        assert ("group" in rows["layer decay"][column]) == (authors.layer_groups == "group")
