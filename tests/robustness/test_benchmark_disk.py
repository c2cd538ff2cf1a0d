"""A disk that fills while something is measured: a sentence, and what was there before stays."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path

import pytest

from mlx_convnextv2 import benchmark, benchmarking
from mlx_convnextv2.benchmarking.findings import ColdStart, Spread
from mlx_convnextv2.benchmarking.report import Report
from mlx_convnextv2.demo import DEMO

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch):
    """Let no file below a folder be written; what is in memory or elsewhere may."""
    write_bytes = Path.write_bytes

    def fill(folder: Path) -> None:
        def refuse(file: Path, data: bytes) -> int:
            if folder not in file.parents:
                return write_bytes(file, data)
            write_bytes(file, bytes(data)[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", refuse)

    return fill


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_file_that_does_not_fit_is_a_sentence_and_leaves_what_was_there(
    option: str, old: bytes | None, full, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    if option == "--plot" and not HAS_MATPLOTLIB:
        pytest.skip("needs the extra `benchmark`")
    file = tmp_path / "out.png"
    if old:
        file.write_bytes(old)

    def cold_start(*, watch, **_) -> Report:
        report: Report[ColdStart] = Report("cold-start", "m", watch=watch)
        report.add(ColdStart("mlx_convnextv2", Spread(1, 1, 1), Spread(1, 1, 1), 1, 1, True))
        return report

    monkeypatch.setattr(benchmarking, "cold_start", cold_start, raising=False)
    full(tmp_path)
    assert benchmark.main(["cold-start", option, str(file)]) == 2
    out, error = capsys.readouterr()
    assert "mlx_convnextv2" in out, "what was measured is printed all the same"
    assert error == f"benchmark: error: {file}: it cannot be written for lack of space (No space left on device)\n"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("mode", ["compare", "cold-start", "scale"])
def test_a_temporary_folder_that_is_full_is_a_sentence(mode: str, full, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full(tmp_path)
    assert benchmark.main([mode, "--size", "atto"]) == 2
    sentence = f"{tmp_path} cannot take the temporary files, for lack of space: set TMPDIR to a folder with more"
    assert capsys.readouterr().err.splitlines()[-1] == f"benchmark: error: {sentence}"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_there_is_the_same_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    resource = pytest.importorskip("resource")
    import signal

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert benchmark.main(["compare", "--model", str(DEMO)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "set TMPDIR to a folder with more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_as_it_is(tmp_path: Path) -> None:
    from mlx_convnextv2.files import output_files

    output_files.check(Path(os.devnull))
    output_files.write(Path(os.devnull), b"x")
    assert Path(os.devnull).is_char_device()
    (tmp_path / "link").symlink_to("file")
    output_files.write(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"
