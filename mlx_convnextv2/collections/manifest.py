"""The manifest of a folder of results, which keeps a later run from mixing in results of another kind."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._version import __version__
from ..files.json_files import read_json, write_json
from ..messages import short

MANIFEST = "manifest.json"
_KIND = "mlx_convnextv2 results"
# Results do not depend on these, or only in the last digits.
_NOT_COMPARED = ("kind", "package", "name", "batch_size")


def agree(folder: Path, run: dict[str, Any]) -> None:
    """Write a run's manifest into its folder, or compare it with the one that is there.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds the results of a run with another model or other options.
    """
    ours = {"kind": _KIND, "package": __version__, **run}
    path = folder / MANIFEST
    if not path.exists():
        others = [name for name in os.listdir(folder) if not name.startswith(".") and name != MANIFEST]
        if others and not path.exists():  # another process may have begun just now
            raise FileExistsError(f"{folder} holds {short(sorted(others)[0])} and no results: choose a new folder")
        _put(path, ours)
    theirs = read_manifest(folder)
    for name, value in ours.items():
        if name not in _NOT_COMPARED and theirs.get(name) != value:
            raise ValueError(
                f"{folder} holds results with {_said(name, theirs)}, and this run has {_said(name, ours)}: go on with "
                "the same, or choose another folder"
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of results.

    Raises:
        FileNotFoundError, ValueError: the folder holds no results.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no results: there is no {MANIFEST} in it")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("kind") != _KIND:
        raise ValueError(f"{path} is not of results of classify: choose another folder")
    return found


def _put(path: Path, content: dict[str, Any]) -> None:
    """Write the manifest whole, unless another process has just done so."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    write_json(partial, content)
    try:
        os.link(partial, path)  # unlike a rename, this fails if there is one
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


def _said(name: str, run: dict[str, Any]) -> str:
    if name == "model":
        return f"the model {short(run.get('name'))} ({short(run.get(name))[1:9]})"
    value = run.get(name)
    option = f"--{name.replace('_', '-')}"
    return f"no {option}" if value is None else f"{option.replace('shards', 'shard I/N, N =')} {short(value)}"
