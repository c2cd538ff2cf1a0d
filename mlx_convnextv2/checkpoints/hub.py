"""All communication with the Hub: fetch the needed files of a checkpoint, and upload one."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import os
import re
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

from ..files.names import CARD_FILE, CONFIG_FILE, PREPROCESSOR_FILE, PYTORCH_SUFFIXES, WEIGHTS_FILES
from ..files.weight_files import shard_names
from ..messages import one_line, short
from .architecture import check_architecture

# The authors' checkpoints on the Hub: facebook/convnextv2-SIZE-DATA.
PUBLISHED = {
    **dict.fromkeys(("atto", "femto", "pico"), "1k-224"),
    **dict.fromkeys(("nano", "tiny", "base", "large"), "1k-224 22k-224 22k-384"),
    "huge": "1k-224 22k-384 22k-512",
}

TIME_LIMIT = "MLX_CONVNEXTV2_HUB_TIMEOUT"  # seconds for a small file
_WINDOW = 10  # times as long for the next 10 MiB of a large file, the size of huggingface_hub's pieces
_BUSY = (408, 429, 500, 502, 503, 504)

# The names that huggingface_hub turns into paths.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,199}")


def fetch(
    path_or_repo: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True, card: bool = False
) -> Path:
    """A checkpoint's folder or weights file: the given one, or the Hub's cache after the needed files are downloaded.

    Args:
        path_or_repo: a folder, a .safetensors, .bin, .pt, .pth or .pth.tar file, or a Hub id.
        revision: branch, tag or commit of the Hub repository.
        weights, card: whether the weights and the model card are needed besides the JSON files.

    Raises:
        FileNotFoundError: no such folder, repository, revision or file.
        OSError: the Hub is out of reach.
        ValueError: a revision is given for something other than a Hub repository.
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
    if "/" not in name and published(name):
        raise FileNotFoundError(f"there is no folder called {name}{_did_you_mean(name)}")
    return _download(name, revision, weights, card)


def _download(repo: str, revision: str | None, weights: bool, card: bool) -> Path:
    """Download the needed files of a Hub repository, all from one commit, into huggingface_hub's cache."""
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
        _download_weights(repo, folder)
    return folder


def _download_weights(repo: str, folder: Path) -> None:
    commit, blobs = folder.name, folder.parent.parent / "blobs"
    for name in WEIGHTS_FILES:
        is_index = name.endswith(".json")
        file = _download_optional(repo, name, commit, None if is_index else blobs)
        if file is None:
            continue
        for shard in shard_names(file) if is_index else []:
            _download_file(repo, shard, commit, blobs)
        return
    raise FileNotFoundError(f"the Hub repository {repo} has none of {', '.join(WEIGHTS_FILES)}")


def _download_optional(repo: str, file: str, commit: str, growing_in: Path | None = None) -> Path | None:
    """A file of a commit, or None if the commit has no such file. A commit never changes, so the cache is right."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file, revision=commit)
    if cached is not None and not isinstance(cached, str):  # the cache notes that the commit lacks the file
        return None
    try:
        return _download_file(repo, file, commit, growing_in)
    except _NoSuchFileError:
        return None


class _NoSuchFileError(FileNotFoundError):
    """A repository that exists has no file of this name."""


def _download_file(repo: str, file: str, revision: str | None, growing_in: Path | None = None) -> Path:
    """A file from the Hub, or from the cache if the Hub is out of reach or the revision is a commit.

    A small file has a time limit. A large file, in the folder `growing_in`, must not stop growing.
    """
    from huggingface_hub import errors as hf, try_to_load_from_cache

    limit = _time_limit()
    cached = None
    try:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(cached, str) and _COMMIT.fullmatch(revision or ""):
            return Path(cached)
        patience = 0 if isinstance(cached, str) else limit
        download = partial(_ask_and_download, repo, file, revision, patience)
        if growing_in is None:
            return in_time(download, limit)
        return in_time(download, _WINDOW * limit, partial(_growth, growing_in))
    except Exception as error:
        is_missing = isinstance(error, hf.EntryNotFoundError) and not isinstance(error, hf.LocalEntryNotFoundError)
        if isinstance(cached, str) and not is_missing and not isinstance(error, hf.RevisionNotFoundError):
            return Path(cached)
        raise _in_words(error, repo, file, revision) from None


def _ask_and_download(repo: str, file: str, revision: str | None, patience: float) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url

    _ask(hf_hub_url(repo, file, revision=revision), repo, file, patience)
    return Path(hf_hub_download(repo, file, revision=revision))


def _ask(url: str, repo: str, file: str, patience: float) -> None:
    """Ask the Hub for a file, and refuse unsafe names in its answer. Wait up to `patience` seconds if it is busy.

    huggingface_hub turns names from the Hub into paths, and retries for minutes if the Hub is out of reach.
    """
    from huggingface_hub import constants, errors as hf, get_hf_file_metadata

    for pause in (1, 2, 4, 8, 8, None):
        try:
            metadata = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            break
        except (hf.HFValidationError, hf.OfflineModeIsEnabled):
            raise
        except Exception as error:
            status, headers = http_status(error), getattr(getattr(error, "response", None), "headers", {})
            _check_names(headers.get("X-Repo-Commit"), None, repo, file)
            if "Timeout" in type(error).__name__:  # the HTTP client's types vary with its version
                raise _HubError(
                    f"the Hub has not answered for {constants.HF_HUB_ETAG_TIMEOUT} seconds, so {repo} cannot be "
                    "downloaded: check the connection and HF_ENDPOINT, or raise HF_HUB_ETAG_TIMEOUT"
                ) from None
            if status is None:
                raise _unreachable(repo, file, f" ({one_line(error)})") from None
            if isinstance(error, hf.EntryNotFoundError):
                return  # the download finds the same, and notes it in the cache
            seconds = _retry_after(error) or pause
            if status not in _BUSY or pause is None or seconds is None or seconds >= patience:
                raise
        patience -= seconds
        time.sleep(seconds)
    _check_names(metadata.commit_hash, metadata.etag, repo, file)


def _check_names(commit: str | None, etag: str | None, repo: str, file: str) -> None:
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise _HubError(
            f"the Hub names {short(commit)} as the commit of {file} of {repo}, which is none: not downloaded"
        )
    if etag is not None and not _ETAG.fullmatch(etag):
        raise _HubError(f"the Hub names {short(etag)} as the ETag of {file} of {repo}, which is unsafe: not downloaded")


class _HubError(OSError):
    """An error whose message is already a sentence for the user."""


def _in_words(error: Exception, repo: str, file: str, revision: str | None) -> OSError:
    """The error for the user, from any error of the HTTP client, whose types are not OSErrors."""
    from huggingface_hub import constants, errors as hf

    at = f" at revision {revision}" if revision else ""
    status = http_status(error)
    if isinstance(error, _HubError):
        return error
    if isinstance(error, hf.HFValidationError):
        return _no_such_folder(repo)
    if isinstance(error, hf.RevisionNotFoundError):
        return FileNotFoundError(f"the Hub repository {repo} has no revision {revision}")
    if isinstance(error, hf.GatedRepoError):
        return OSError(f"{repo} is gated: accept its terms on the Hub and set HF_TOKEN")
    if isinstance(error, hf.RepositoryNotFoundError):
        return FileNotFoundError(
            f"there is no folder and no Hub repository called {repo}, or it is private and HF_TOKEN gives no access"
            + _did_you_mean(repo)
        )
    if status in (401, 403):
        return OSError(f"the Hub refuses {file} of {repo} to this HF_TOKEN (status {status}): renew it")
    if isinstance(error, hf.EntryNotFoundError) and not isinstance(error, hf.LocalEntryNotFoundError):
        return _NoSuchFileError(f"the Hub repository {repo} has no {file}{at} (status 404)")
    if status is not None:
        seconds = _retry_after(error)
        when = "later" if seconds is None else f"in {seconds} seconds, as it asks"
        return OSError(f"the Hub answers status {status} for {file} of {repo}: try again {when}")
    if isinstance(error, hf.OfflineModeIsEnabled | hf.LocalEntryNotFoundError):
        return _unreachable(repo, f"{file}{at}")
    if "Timeout" in type(error).__name__:
        return OSError(
            f"the Hub has sent nothing of {file} of {repo} for {constants.HF_HUB_DOWNLOAD_TIMEOUT} seconds, again and "
            "again: check the connection, or raise HF_HUB_DOWNLOAD_TIMEOUT"
        )
    return OSError(f"{file} of {repo} could not be downloaded from the Hub: {one_line(error)}")


def _unreachable(repo: str, file: str, why: str = "") -> _HubError:
    return _HubError(
        f"there is no folder called {repo}, and {file} of a Hub repository of that name is not in the cache and the "
        f"Hub cannot be reached{why}: check the connection, HF_ENDPOINT and HF_HUB_OFFLINE{_did_you_mean(repo)}"
    )


def _no_such_folder(name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"there is no folder called {name!r}, and it is not a Hub id such as owner/name{_did_you_mean(name)}"
    )


def published(name: str) -> list[str]:
    """The ids of the authors' checkpoints on the Hub that begin with a name such as "tiny" or "convnextv2-tiny"."""
    name = name.rpartition("/")[2].lower().replace("_", "-").removeprefix("convnextv2-") + "-"
    ids = [f"{size}-{data}" for size, kinds in PUBLISHED.items() for data in kinds.split()]
    return [f"facebook/convnextv2-{id}" for id in ids if f"{id}-".startswith(name)]


def _did_you_mean(name: str) -> str:
    ids = published(name)
    return f"; did you mean {' or '.join(ids)}?" if ids and name not in ids else ""


def _time_limit() -> float:
    """The seconds of MLX_CONVNEXTV2_HUB_TIMEOUT, or 60."""
    text = os.environ.get(TIME_LIMIT, "60")
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", text) or not float(text):
        raise ValueError(f"{TIME_LIMIT} must be a number of seconds above 0, not {short(text)}")
    return float(text)


def _growth(folder: Path) -> list[tuple[str, int, int]]:
    """A value that changes while a file is being downloaded into a folder of the cache."""
    growth = []
    for path in folder.glob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            growth.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    return sorted(growth)


def in_time(call: Callable[[], Path], seconds: float, progress: Callable[[], object] | None = None) -> Path:
    """The result of a call. It runs in its own thread, so neither the time limit nor Ctrl-C has to wait for the Hub.

    Raises:
        OSError: `seconds` are over. With `progress`, its value has not changed for this time.
    """
    outcome: Future[Path] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    try:
        before = progress and progress()
        while not _done_within(outcome, seconds):
            now = progress and progress()
            if now == before:
                what = "what is downloaded has not grown" if progress else "a small file has not come from the Hub"
                raise _HubError(f"{what} within {seconds:g} seconds: check the connection, or raise {TIME_LIMIT}")
            before = now
    finally:
        if not outcome.done():  # its clean-up removes the partial download, if the Hub lets it run
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            wait([outcome], 1)
    return outcome.result()


def _done_within(outcome: Future[Path], seconds: float) -> bool:
    """Wait for an outcome, in short pieces: a Ctrl-C that comes just before a wait is only noticed behind it."""
    end = time.monotonic() + seconds
    while not outcome.done() and (left := end - time.monotonic()) > 0:
        wait([outcome], min(left, 0.5))
    return outcome.done()


def _retry_after(error: Exception) -> int | None:
    """The seconds that the Hub asks us to wait."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    text = headers.get("Retry-After", "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, if the Hub answered."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def upload(path: str | os.PathLike[str], repo: str) -> str:
    """Publish a checkpoint folder as a Hub repository, which is created if necessary, and return its address.

    Raises:
        OSError: the Hub is out of reach, or HF_TOKEN does not allow writing there.
        ValueError: `repo` is not a Hub id.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo)
    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=os.fspath(path), repo_id=repo, commit_message="Upload a ConvNeXt V2 checkpoint")
    except Exception as error:  # the HTTP client's errors are not OSErrors
        status = http_status(error)
        remedy = "check that HF_TOKEN may write there" if status in (401, 403) else "try again later"
        answer = one_line(error) if status is None else f"the Hub answers status {status}: {one_line(error)}"
        raise OSError(f"{path} is written but could not be uploaded to {repo} ({answer}): {remedy}") from None
    return str(address)


def check_repo_id(repo: str) -> None:
    """Raise a ValueError if a Hub repository cannot have this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise ValueError(f"{short(repo)} is not a Hub id such as owner/name") from None
