"""Frames of videos: which are taken, what they are called, and what a damaged or hostile video does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_convnextv2.collections.videos import frames

av = pytest.importorskip("av")


def make_video(path: Path, seconds: float = 3.0, rate: int = 10) -> Path:
    """A video whose frames get brighter by time: 80 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(round(seconds * rate)):
            pixels = np.full((48, 64, 3), i * 80 // rate, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "clip.mp4")


@pytest.fixture
def classify(run, mlx_folder):
    def classify(*arguments):
        result = run("classify", *arguments, "--model", mlx_folder, "--format", "jsonl")
        return result, [json.loads(line) for line in result.stdout.splitlines()]

    return classify


def test_a_frame_a_second_is_classified_and_its_name_says_when(classify, video) -> None:
    result, lines = classify(video)
    assert result.returncode == 0, result.stderr
    assert [line["image"] for line in lines] == [f"{video}#t=00:00:0{second}.000" for second in (0, 1, 2)]
    assert [line["time"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize(
    ("fps", "times"),
    [
        (2, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0.4, [0, 2.5]),
        (100, [i / 10 for i in range(30)]),
        (1e308, [i / 10 for i in range(30)]),
    ],
)
def test_fps_decides_which_frames_are_taken(video, fps, times) -> None:
    taken = list(frames(str(video), fps))
    assert [round(frame.seconds, 3) for frame in taken] == times
    for frame in taken:
        assert np.asarray(frame.image).mean() == pytest.approx(80 * frame.seconds, abs=6)


def test_time_codes_have_hours_minutes_and_seconds() -> None:
    from mlx_convnextv2.collections.videos import Frame

    assert Frame(Image.new("RGB", (1, 1)), 3723.4999).timecode == "01:02:03.500"


def test_a_damaged_video_is_named_and_the_rest_is_done(classify, video, tmp_path, photo) -> None:
    photo.save(tmp_path / "a.png")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:400])
    (tmp_path / "text.mp4").write_text("no video")
    result, lines = classify(tmp_path / "cut.mp4", tmp_path / "text.mp4", tmp_path / "gone.mp4", tmp_path / "a.png")
    assert result.returncode == 1
    assert ["error" in line for line in lines] == [True, True, True, False]
    for name, line in zip(("cut.mp4", "text.mp4", "gone.mp4"), lines, strict=False):
        assert name in line["error"]


def test_a_video_with_frames_that_are_too_large_is_refused_before_they_are_decoded(classify, video) -> None:
    result, (line,) = classify(video, "--max-pixels", 64 * 48 - 1)
    assert result.returncode == 2
    assert "64 x 48" in line["error"]


@pytest.mark.parametrize("name", ["12:30.mp4", "http:a.mp4", "-\udcff.mp4"])
def test_a_videos_name_may_look_like_an_address(video, tmp_path, monkeypatch, name) -> None:
    (tmp_path / name).write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(list(frames(name))) == 3


def test_a_video_of_an_unknown_codec_or_with_odd_text_ends_no_run(classify, video, tmp_path) -> None:
    content = video.read_bytes()
    (tmp_path / "codec.mp4").write_bytes(content.replace(b"mp4v", b"zzzz").replace(b"A \x11\0", b"A\xff\x11\0"))
    (tmp_path / "text.mp4").write_bytes(content.replace(b"Lavf", b"\xff\xfe\xff\xfe"))
    result, lines = classify(tmp_path / "codec.mp4", tmp_path / "text.mp4")
    assert result.returncode == 1
    assert ["codec" in line.get("error", "") for line in lines] == [True, False, False, False]


def test_a_playlist_in_disguise_opens_no_other_file(classify, video, tmp_path) -> None:
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {video}\n")
    result, lines = classify(tmp_path / "list.mp4", tmp_path / "concat.mp4")
    assert result.returncode == 2
    assert all("cannot be read" in line["error"] for line in lines)


def test_a_turned_video_is_upright(tmp_path) -> None:
    class Turned:
        rotation = 90

        def to_image(self) -> Image.Image:
            image = Image.new("RGB", (4, 2))
            image.putpixel((3, 0), (255, 0, 0))
            return image

    from mlx_convnextv2.collections import videos

    upright = videos._upright(Turned())
    assert upright.size == (2, 4)
    assert upright.getpixel((0, 0)) == (255, 0, 0)


def test_a_run_over_a_video_goes_on_where_it_was(run, mlx_folder, video, tmp_path) -> None:
    arguments = (video, "--model", mlx_folder, "--output", tmp_path / "results", "--fps", 5, "--part-size", 4)
    assert run("classify", *arguments).returncode == 0
    (tmp_path / "results" / "part-1of1-000003.jsonl").unlink()
    assert "3 images in" in run("classify", *arguments).stderr
    lines = run("classify", "--merge", tmp_path / "results", "--format", "jsonl").stdout.splitlines()
    assert [round(json.loads(line)["time"], 3) for line in lines] == [i / 5 for i in range(15)]


def test_without_pyav_a_video_names_the_extra(classify, video, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result, _ = classify(video, video)
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert first.endswith('is a video, which needs the extra video: pip install "mlx-convnextv2[video]"')
    assert second.endswith("is a video, which needs the extra video")
