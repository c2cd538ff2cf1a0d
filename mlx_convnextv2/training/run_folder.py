"""The folder of an unfinished run, beside its future checkpoint: options, state and results."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import output_files
from ..files.json_files import read_json
from .output import RESULTS_FILE, results
from .state import STATE_FILE, TrainingState, load_state, save_state

RUN_FILE = "run.json"
_SUFFIX = ".run"


def run_folder(output: str | os.PathLike[str]) -> Path:
    """The folder of a run until its checkpoint is written: `output` with ".run" at its end."""
    path = Path(output).expanduser().absolute()
    return path.with_name(f"{path.name}{_SUFFIX}")


def is_unfinished(output: str | os.PathLike[str]) -> bool:
    """Whether there is an unfinished run."""
    return (run_folder(output) / RUN_FILE).is_file()


def read_run(output: str | os.PathLike[str]) -> dict[str, Any]:
    """How the unfinished run was started.

    Raises:
        FileNotFoundError: there is no unfinished run.
    """
    path = run_folder(output) / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no unfinished run at {run_folder(output)}: leave --resume out")
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("options"), dict):
        raise ValueError(f"{path} is not what train wrote: start the run anew (--overwrite)")
    return values


class RunFolder:
    """The folder of a run, while a process holds it."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def of(cls, output: str | os.PathLike[str]) -> RunFolder:
        """The folder of another process's run, for reading only."""
        return cls(run_folder(output))

    def save(self, state: TrainingState, description: dict[str, Any]) -> None:
        """Save a state, and its rows as results.csv for people to follow."""
        save_state(self.path, state, description)
        if state.rows:
            output_files.write(self.path / RESULTS_FILE, results(state.rows))

    def load(self) -> tuple[TrainingState, dict[str, Any]] | None:
        """The last state and its description, or None if none was saved yet."""
        return load_state(self.path) if (self.path / STATE_FILE).is_file() else None

    def remove(self) -> None:
        """Remove the run's own files at once, and the folder if it holds nothing else."""
        ours = all(_is_ours(entry.name) for entry in self.path.iterdir())
        if ours:  # if this is interrupted, the next writer of the checkpoint clears this name away
            name = self.path.name.removesuffix(_SUFFIX)
            self.path = self.path.rename(self.path.with_name(f".{name}.{secrets.token_hex(4)}.partial"))
        _clear(self.path)
        if ours:
            self.path.rmdir()


@contextmanager
def open_run(
    output: str | os.PathLike[str], started: dict[str, Any], resume: bool = False, overwrite: bool = False
) -> Iterator[RunFolder]:
    """The folder of the run, held by this process alone. It is made if it does not exist.

    Args:
        output: the checkpoint that the run will write.
        started: how the run was started, for `read_run`.
        resume: go on with the run that is there.
        overwrite: discard an unfinished run and begin again.

    Raises:
        FileExistsError: there is an unfinished run, or the folder does not belong to a run.
        OSError: another process trains there.
    """
    path = run_folder(output)
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(f"another process trains {output} already: wait for it, or choose another folder") from None
        folder = RunFolder(path)
        if resume:
            yield folder
            return
        _check_free(path, overwrite)
        _clear(path)
        try:
            output_files.write(path / RUN_FILE, json.dumps(started, indent=1).encode())
            yield folder
        except BaseException:
            if not (path / STATE_FILE).exists():  # it failed early, for example without a model
                folder.remove()
            raise
    finally:
        os.close(lock)


def _check_free(path: Path, overwrite: bool) -> None:
    inside = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if not inside:
        return
    if RUN_FILE not in inside:
        raise FileExistsError(f"{path} is no folder of a run: rename it, for the run needs this place")
    if not overwrite:
        raise FileExistsError(f"{path} holds an unfinished run: go on with --resume, or begin anew with --overwrite")


def _clear(path: Path) -> None:
    for entry in list(path.iterdir()):
        if _is_ours(entry.name):
            entry.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    name = name.lstrip(".")
    return name in (RUN_FILE, RESULTS_FILE, STATE_FILE) or name.endswith((f".{STATE_FILE}", ".partial"))
