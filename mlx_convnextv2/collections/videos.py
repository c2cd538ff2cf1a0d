"""The frames of a video, with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from ..images.decode import MAX_PIXELS, MissingExtraError
from ..messages import one_line

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp"}

# Nothing but a file and its own content is opened: a playlist in disguise could name other files, or addresses.
_SAFE = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegts"}


@dataclass(frozen=True)
class Frame:
    """A frame, upright, and the seconds from the start of its video."""

    image: Image.Image
    seconds: float

    @property
    def timecode(self) -> str:
        """Hours, minutes and seconds, as in the media fragments of addresses: 00:01:02.500."""
        milliseconds = round(self.seconds * 1000)
        minutes, rest = divmod(milliseconds, 60_000)
        return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def frames(path: str, fps: float = 1.0, max_pixels: int | None = None) -> Iterator[Frame]:
    """The first frame in each period of 1/fps seconds, counted from the first frame of the video.

    Raises:
        FileNotFoundError, OSError: it cannot be opened.
        ValueError: it is no video, it is damaged, its frames are too large, or the extra `video` is missing.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError(f"{path} is a video, which needs the extra video", "video") from None
    most = MAX_PIXELS if max_pixels is None else max_pixels
    with open(path, "rb"):  # the system's own error if it cannot be opened
        pass
    try:
        # "file:", because the name may look like an address
        with av.open(f"file:{path}", options=_SAFE, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError("it holds no pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its codec is not known here")
            stream.thread_type = "AUTO"
            _check(stream.codec_context.width, stream.codec_context.height, most)
            start, due = None, 0.0
            for frame in container.decode(stream):
                _check(frame.width, frame.height, most)
                if frame.time is None:
                    continue
                start = frame.time if start is None else start
                seconds = frame.time - start
                if seconds >= due - 1e-6:
                    yield Frame(_upright(frame), seconds)
                    due = (int(min(seconds * fps, 1e15) + 1e-6) + 1) / fps
            if start is None:
                raise ValueError("it holds no frame that can be decoded")
    except MemoryError:
        raise ValueError(f"{path} needs more memory than there is") from None
    except av.ArgumentError:
        raise ValueError(f"{path} is not a video, or of a format that is not read") from None
    except (av.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise ValueError(f"{path} cannot be read: {why}") from None


def _check(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ValueError(
            f"its frames have too many pixels, {width} x {height}: scale it down to at most {most:,}, or raise "
            "max_pixels (--max-pixels)"
        )


def _upright(frame: object) -> Image.Image:
    image: Image.Image = frame.to_image()  # type: ignore[attr-defined]
    turn = getattr(frame, "rotation", 0)  # degrees counterclockwise; PyAV has it from version 14 on
    return image.rotate(turn, expand=True) if turn else image
