"""Checkpoints by name: a folder, a file, or a repository of the Hub, of which only the files needed are downloaded."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from .image_processor import PREPROCESSOR_FILE
from .messages import one_line, short
from .model_card import CARD_FILE
from .sources import CONFIG_FILE, check_architecture
from .tensor_files import PYTORCH_SUFFIXES, WEIGHTS_FILES, shard_names


def fetch(
    path_or_repo: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True, card: bool = False
) -> Path:
    """A checkpoint's folder or weights file: the one given, or the Hub's cache after downloading what is needed.

    Args:
        path_or_repo: a folder, a .safetensors, .bin, .pt, .pth or .pth.tar file, or a Hub id.
        revision: branch, tag or commit of the Hub repository.
        weights, card: whether the weights and the model card are needed as well as the JSON files.

    Raises:
        FileNotFoundError: no such folder, repository, revision or file.
        OSError: the Hub is out of reach.
        ValueError: a revision of what is no Hub repository.
    """
    if not isinstance(path_or_repo, str | os.PathLike):
        raise TypeError(f"a checkpoint is a folder, a file or a Hub id, not {short(path_or_repo)}")
    name = os.fspath(path_or_repo)
    path = Path(os.path.expanduser(name))
    named_as_weights = path.name.endswith((".safetensors", *PYTORCH_SUFFIXES))
    if name and path.exists() and revision is not None:
        raise ValueError(f"{name} is on this machine and has no revisions: leave the revision {revision} out")
    if name and path.is_dir():
        return path
    if name and path.exists():
        if not named_as_weights:
            raise ValueError(f"{name} is neither a folder nor a .safetensors, .bin, .pt, .pth or .pth.tar file")
        return path
    if named_as_weights:
        raise FileNotFoundError(f"there is no file called {name}")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise _no_such_folder(name)
    return _download(name, revision, weights, card)


def _download(repo: str, revision: str | None, weights: bool, card: bool) -> Path:
    """Download what is needed of a Hub repository, all of one commit, into huggingface_hub's cache."""
    _check_that_the_hub_answers(repo, revision)
    config = _download_file(repo, CONFIG_FILE, revision)
    folder = config.parent
    commit = folder.name  # .../snapshots/COMMIT/config.json
    check_architecture(folder)  # before a download of gigabytes
    _download_optional(repo, PREPROCESSOR_FILE, commit)
    if card:
        try:
            _download_optional(repo, CARD_FILE, commit)
        except OSError:
            warnings.warn(f"the model card of {repo} cannot be downloaded: its licence is not known", stacklevel=4)
    if weights:
        _download_weights(repo, commit)
    return folder


def _check_that_the_hub_answers(repo: str, revision: str | None) -> None:
    """Raise an OSError if nothing is cached and the Hub is silent, which its client bears for six minutes.

    Any answer will do: what it says is said again to the download itself.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if try_to_load_from_cache(repo, CONFIG_FILE, revision=revision) is None:
            get_hf_file_metadata(hf_hub_url(repo, CONFIG_FILE, revision=revision))
    except Exception as error:
        if "Timeout" in type(error).__name__:  # the HTTP client's own types vary with its version
            raise OSError(
                f"the Hub has not answered for {constants.HF_HUB_ETAG_TIMEOUT} seconds, so {repo} cannot be "
                "downloaded: check the connection and HF_ENDPOINT, or raise HF_HUB_ETAG_TIMEOUT"
            ) from None


def _download_weights(repo: str, commit: str) -> None:
    for name in WEIGHTS_FILES:
        file = _download_optional(repo, name, commit)
        if file is None:
            continue
        for shard in shard_names(file) if file.suffix == ".json" else []:
            _download_file(repo, shard, commit)
        return
    raise FileNotFoundError(f"the Hub repository {repo} has none of {', '.join(WEIGHTS_FILES)}")


def _download_optional(repo: str, file: str, commit: str) -> Path | None:
    """A file of a commit, or None where the commit has no such file. What the cache knows of a commit stays true."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file, revision=commit)
    if cached is _CACHED_NO_EXIST:
        return None
    try:
        return Path(cached) if isinstance(cached, str) else _download_file(repo, file, commit)
    except _NoSuchFileError:
        return None


class _NoSuchFileError(FileNotFoundError):
    """A repository that exists has no file of this name."""


def _download_file(repo: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import errors as hf, hf_hub_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except hf.RevisionNotFoundError:
        raise FileNotFoundError(f"the Hub repository {repo} has no revision {revision}") from None
    except hf.GatedRepoError:
        raise OSError(f"{repo} is gated: accept its terms on the Hub and set HF_TOKEN") from None
    except hf.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"there is no folder and no Hub repository called {repo}, or it is private and HF_TOKEN gives no access"
        ) from None
    except hf.HFValidationError:
        raise _no_such_folder(repo) from None
    except Exception as error:  # whatever the HTTP client raises: its own types are not OSErrors
        status = http_status(error)
        if status in (401, 403):
            raise OSError(f"the Hub refuses {file} of {repo} to this HF_TOKEN (status {status}): renew it") from None
        if isinstance(error, hf.EntryNotFoundError) and not isinstance(error, hf.LocalEntryNotFoundError):
            raise _NoSuchFileError(f"the Hub repository {repo} has no {file}{at} (status 404)") from None
        if status is not None:
            raise OSError(f"the Hub answers status {status} for {file} of {repo}: try again later") from None
        if isinstance(error, hf.LocalEntryNotFoundError):
            raise OSError(
                f"there is no folder called {repo}, and {file} of a Hub repository of that name{at} is not in the "
                "cache and the Hub cannot be reached: check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
            ) from None
        raise OSError(f"{file} of {repo} could not be downloaded from the Hub: {one_line(error)}") from None


def _no_such_folder(name: str) -> FileNotFoundError:
    return FileNotFoundError(f"there is no folder called {name!r}, and it is not a Hub id such as owner/name")


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, if the Hub has answered."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None
