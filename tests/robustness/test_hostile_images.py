"""Images, folders, pipes and processors that ask for too much: refused in a sentence, by what their header says."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
from conftest import ROOT
from image_files import encode, png
from PIL import Image, PngImagePlugin

from mlx_convnextv2 import ConvNextImageProcessor
from mlx_convnextv2.classify import main
from mlx_convnextv2.images import decode
from mlx_convnextv2.images.decode import MAX_PIXELS, open_image
from mlx_convnextv2.images.folders import find_images

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


# --- too many pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 178_000_000), (178_000_000, 1), (20_000, 20_000), (1, 1_000_001)])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch, size):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)  # which decodes
    (tmp_path / "bomb.png").write_bytes(png(size[0], size[1], 8, 0, b""))
    with pytest.raises(ValueError, match=rf"bomb\.png.* {size[0]} x {size[1]}"):
        open_image(tmp_path / "bomb.png")


def test_the_limit_can_be_lowered_and_raised(photo):
    pixels = photo.width * photo.height
    for source in (lambda: photo, lambda: np.asarray(photo), lambda: io.BytesIO(encode(photo, "PNG"))):
        with pytest.raises(ValueError, match=f"at most {pixels - 1:,}, or raise max_pixels"):
            open_image(source(), max_pixels=pixels - 1)
        assert open_image(source(), max_pixels=pixels).size == photo.size


def test_a_photo_that_pillow_itself_refuses_is_read_and_pillows_limit_stays_as_it_is(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # as if the photo had 200 million
    assert open_image(io.BytesIO(encode(photo, "JPEG"))).size == photo.size
    assert Image.MAX_IMAGE_PIXELS == 1_000
    assert MAX_PIXELS > 16_320 * 12_240  # a phone's 200 megapixels


def test_a_processor_passes_its_limit_on_and_keeps_it_out_of_its_file(photo):
    processor = ConvNextImageProcessor(size=24, max_pixels=100)
    with pytest.raises(ValueError, match="at most 100"):
        processor.preprocess(photo)
    assert "max_pixels" not in processor.to_dict()
    with pytest.raises(ValueError, match="max_pixels"):
        ConvNextImageProcessor.from_dict({**processor.to_dict(), "max_pixels": 10**12})
    assert ConvNextImageProcessor.from_dict(processor.to_dict(), max_pixels=7).max_pixels == 7


def test_classify_takes_the_limit(mlx_folder, photo, tmp_path, capsys):
    Image.Image.save(photo, tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--model", str(mlx_folder)]
    assert main([*arguments, "--max-pixels", "6299"]) == 2  # 90 x 70 is one more
    assert "--max-pixels" in capsys.readouterr().err
    assert main([*arguments, "--max-pixels", "6300"]) == 0


@pytest.mark.parametrize("kind", ["grey of 16 bits", "float grey", "grey", "RGBA", "palette", "a transparent level"])
def test_bands_change_no_pixel(kind, monkeypatch):
    rgba = np.arange(192, dtype=np.uint8).reshape(8, 6, 4)
    images: dict[str, np.ndarray] = {
        "float grey": np.linspace(0, 1, 48, dtype=np.float32).reshape(8, 6),
        "grey": rgba[..., 0].copy(),
        "RGBA": rgba,
        "palette": rgba[..., :3].copy(),
    }
    image = Image.fromarray(images.get(kind, np.arange(48, dtype=np.uint16).reshape(8, 6) * 1_300))
    if kind == "palette":
        image = image.quantize(9)
    if kind in ("palette", "a transparent level"):
        image.info["transparency"] = 3 if kind == "palette" else 1_300 * 20
    whole = np.asarray(open_image(image))
    monkeypatch.setattr(decode, "_BAND_PIXELS", 13)  # two rows, and what is left
    assert np.array_equal(np.asarray(open_image(image)), whole)


def test_a_conversion_takes_no_more_than_bands_beside_its_result():
    image = Image.fromarray(np.zeros((6_000, 1_000), np.uint16))  # numpy's arrays are counted, Pillow's are not
    tracemalloc.start()
    open_image(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 36_000_000  # as doubles alone, all its values would take 48 MB


@pytest.mark.parametrize("where", ["open", "resize"])
def test_a_lack_of_memory_is_that_images_error(tmp_path, photo, monkeypatch, where):
    Image.Image.save(photo, tmp_path / "photo.png")
    processor = ConvNextImageProcessor(size=24)

    def fail(*_, **__):
        raise MemoryError

    target = (decode, "_upright") if where == "open" else (ConvNextImageProcessor, "resize")
    monkeypatch.setattr(*target, fail)
    with pytest.raises(ValueError, match=r"photo\.png needs more memory"):
        processor.preprocess(tmp_path / "photo.png")


# --- what a processor may ask for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"size": 8192}, {"size": 3163}, {"size": 3000, "crop_pct": 0.01}])
def test_a_processor_that_makes_too_many_values_is_refused(values):
    for do_resize in (True, False):
        with pytest.raises(ValueError, match=r"size 3163|size 8192|crop_pct 0\.01"):
            ConvNextImageProcessor(do_resize=do_resize, **values)


def test_without_do_resize_an_image_of_too_many_values_is_refused_and_named(tmp_path, monkeypatch):
    Image.new("RGB", (4_000, 2_501)).save(tmp_path / "large.bmp")
    with pytest.raises(ValueError, match=r"large\.bmp: 4000 x 2501 pixels .* 30,000,000 values"):
        ConvNextImageProcessor(do_resize=False).preprocess(tmp_path / "large.bmp")


def test_a_batch_of_too_many_values_is_refused_before_it_is_made(photo):
    with pytest.raises(ValueError, match=r"60000 images of 18,900 values are too many"):
        ConvNextImageProcessor(do_resize=False)([photo] * 60_000)


def test_a_strip_is_named_in_the_error(tmp_path):
    Image.new("L", (1, 400_000)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"strip\.png: an image of 1 x 400000 pixels is too narrow"):
        ConvNextImageProcessor(size=224).preprocess(tmp_path / "strip.png")


@pytest.mark.parametrize(
    "values",
    [{"image_std": 1e-45}, {"image_mean": 3e38, "image_std": 0.5}, {"rescale_factor": 1e38}],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_values_that_can_only_make_infinities_are_refused(values):
    with pytest.raises(ValueError, match="rescale_factor, image_mean and image_std"):
        ConvNextImageProcessor.from_dict(values)
    # and where they are not used they may be anything
    ConvNextImageProcessor(do_rescale=False, rescale_factor=1e38, do_normalize=False, image_std=1e-39)


# --- streams --------------------------------------------------------------------------------------------------------


class Endless(io.RawIOBase):
    """A stream of zeros without an end, which counts what was read of it."""

    read_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= 2**30  # or it would never end
        self.read_bytes += size
        return bytes(size)


def test_a_file_object_without_an_end_is_an_error(monkeypatch):
    monkeypatch.setattr(decode, "MAX_STREAM_BYTES", 10_000_000)
    stream = Endless()
    with pytest.raises(ValueError, match="the image cannot be read: it has more than 10 MB"):
        open_image(cast(BinaryIO, stream))
    assert stream.read_bytes == 10_000_001


def test_standard_input_without_an_end_is_that_inputs_error(monkeypatch, mlx_folder, photo, tmp_path, capsys):
    Image.Image.save(photo, tmp_path / "photo.png")
    monkeypatch.setattr(decode, "MAX_STREAM_BYTES", 10_000_000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    monkeypatch.setattr(Endless, "readinto", lambda self, b: len(b))
    assert main(["-", str(tmp_path / "photo.png"), "--model", str(mlx_folder)]) == 1
    output = capsys.readouterr()
    assert output.err == "classify: <stdin> cannot be read: it has more than 10 MB, which no image should take\n"
    assert "photo.png" in output.out


@needs_pipes
def test_a_pipe_that_nobody_writes_to_is_given_up(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(decode, "_MAX_SILENCE", 0.2)
    with pytest.raises(ValueError, match="pipe cannot be read: nothing came"):
        open_image(tmp_path / "pipe")


@needs_pipes
def test_a_slow_writer_is_waited_for(tmp_path, photo):
    os.mkfifo(tmp_path / "pipe")
    file = encode(photo, "PNG")

    def write() -> None:
        time.sleep(0.2)
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            pipe.write(file[:1_000])
            time.sleep(0.2)
            pipe.write(file[1_000:])

    threading.Thread(target=write, daemon=True).start()
    assert open_image(tmp_path / "pipe").tobytes() == photo.tobytes()


@needs_pipes
def test_ctrl_c_ends_the_wait_for_a_pipe_at_once(tmp_path, mlx_folder):
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "mlx_convnextv2.classify", tmp_path / "pipe", "--model", mlx_folder]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    with (tmp_path / "pipe").open("wb", buffering=0) as pipe:  # which waits for who reads

        def drip() -> None:
            with contextlib.suppress(OSError):
                while process.poll() is None:  # so that who waits for the end waits for ever
                    pipe.write(b"x")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=600)[1] == b""
            assert process.returncode == 130
        finally:
            process.kill()


# --- folders --------------------------------------------------------------------------------------------------------


def classified(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, str]]]:
    status = main([*map(str, arguments), "--format", "json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_that_cannot_be_read_is_a_failure_and_the_rest_is_done(
    tmp_path, photo, mlx_folder, monkeypatch, capsys
):
    (tmp_path / "closed").mkdir()
    for name in ("a.png", "closed/b.png", "d.png"):
        Image.Image.save(photo, tmp_path / name)
    scandir = os.scandir

    def refuse(path):  # the tests may run as root, who may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    status, lines = classified(capsys, tmp_path, "--model", mlx_folder)
    assert status == 1
    assert [line["image"] for line in lines] == [str(tmp_path / name) for name in ("a.png", "closed", "d.png")]
    assert lines[1]["error"] == f"{tmp_path}/closed: Permission denied"


def test_a_broken_link_is_named_with_what_it_leads_to(tmp_path, photo, mlx_folder, capsys):
    Image.Image.save(photo, tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "notes.txt").symlink_to("nowhere.txt")
    (tmp_path / "linked.png").symlink_to("a.png")
    status, lines = classified(capsys, tmp_path, "--model", mlx_folder)
    errors = {os.path.basename(line["image"]): line.get("error", "") for line in lines}
    assert status == 1
    assert list(errors) == ["a.png", "gone.png", "itself.png", "linked.png"]
    assert "no such image" in errors["gone.png"]
    assert "nowhere.png" in errors["gone.png"]
    assert "Too many levels" in errors["itself.png"]
    assert errors["linked.png"] == ""


def deep(folder: Path, depth: int, name: str) -> int:
    """A descriptor of the last of so many folders in one another: paths may be longer than the system takes."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        above, here = here, os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(above)
    return here


def test_folders_deeper_than_functions_may_call_one_another_are_searched(tmp_path):
    here = deep(tmp_path, 150, "d")
    os.close(os.open("a.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 120)
    try:
        found = find_images(tmp_path)
    finally:
        sys.setrecursionlimit(before)
    assert found == [tmp_path.joinpath(*["d"] * 150, "a.png")]


def test_a_folder_beyond_the_longest_path_is_named(tmp_path):
    os.close(deep(tmp_path, 30, "long" * 50))
    (found,) = find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="too long"):
        open_image(found)
    subprocess.run(["rm", "-r", tmp_path / ("long" * 50)], check=True)


@needs_pipes
def test_a_pipe_in_a_folder_is_passed_by(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "a.png").touch()
    assert find_images(tmp_path) == [tmp_path / "a.png"]


# --- formats that this Pillow does not read -------------------------------------------------------------------------


def test_avif_is_called_by_its_name_where_pillow_cannot_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(decode.features, "check", lambda name: False)
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99))
    with pytest.raises(ValueError, match=r"a\.avif.*AVIF image, which Pillow .* install a newer one"):
        open_image(tmp_path / "a.avif")
