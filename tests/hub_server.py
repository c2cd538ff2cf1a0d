"""A small Hugging Face Hub on this machine: it serves model repositories from disk to the real huggingface_hub."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class Repository:
    """A model repository: a folder for each commit, the commit of each branch, and who may read it.

    A private repository answers like a missing one to those without the token, as the Hub does; a gated one says that
    its terms have to be accepted.
    """

    commits: dict[str, Path] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Request:
    """A request and the status it got, 0 while it has none."""

    method: str
    repo: str
    revision: str
    file: str
    token: str | None
    status: int = 0


@dataclass
class Fault:
    """Answer requests for `file` with `status`, or break off after `length` bytes of the body; `times` times.

    `drips` makes the "headers" or the rest of the "body" come byte by byte for ever, and "nothing" of the rest at all.
    """

    file: str
    methods: tuple[str, ...] = ("HEAD", "GET")
    status: int | None = None
    length: int | None = None
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    drips: str | None = None


class HubServer:
    """Serves the repositories that `commit` put below `root`, until `stop`.

    `requests` has every request that was answered; `faults` are tried in order; `on_request` is called before each
    answer.
    """

    def __init__(self, root: Path):
        self.root = root
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.upload_token: str | None = None  # with which one may write
        self.upload_status: int | None = None  # which uploads are answered instead of being taken
        self.large_files: dict[str, bytes] = {}
        self.on_request: Callable[[Request], None] = lambda request: None
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """The variables of a user of this Hub, whose cache is below `home` and who has no token."""
        cache = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}
        here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": self.url}
        return {**cache, **here}

    def commit(self, repo: str, folder: Path, branch: str = "main", **rights: Any) -> str:
        """A copy of the folder becomes the new head of a branch; returns the commit's hash."""
        repository = self.repositories.setdefault(repo, Repository(**rights))
        commit = hashlib.sha1(f"{repo} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = Path(shutil.copytree(folder, self.root / repo / commit))
        repository.branches[branch] = commit
        return commit

    def fetched(self) -> list[str]:
        """The files whose content was sent, in order."""
        return [request.file for request in self.requests if request.method == "GET" and request.status in (200, 206)]

    def stop(self) -> None:
        """From now on connections are refused."""
        self.stopped.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """Uploads, as far as the client asks: it creates the repository, sends large files by LFS, and commits."""
        hub = self.server.hub
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path, token = self.path.split("?")[0], self.headers["Authorization"]
        if hub.upload_token is None or token != f"Bearer {hub.upload_token}":
            return self._json({"error": "no right to write"}, 403)
        if path == "/api/repos/create":
            request = json.loads(content)
            return self._json({"url": f"{hub.url}/{request['organization']}/{request['name']}"})
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}} for o in objects]
            return self._json({"transfer": "basic", "objects": actions})
        if path.endswith("/preupload/main") and hub.upload_status is not None:
            return self._json({"error": "not now"}, hub.upload_status)
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(content)["files"]]
            ways = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            files = [{"path": n, "uploadMode": w, "shouldIgnore": False} for n, w in zip(names, ways, strict=True)]
            return self._json({"files": files})
        repo = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)
        if repo is None:
            return self._json({"error": f"{path} is not served here"}, 404)
        folder = hub.root / "uploaded"
        folder.mkdir()
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                (folder / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "lfsFile":
                (folder / line["value"]["path"]).write_bytes(hub.large_files[line["value"]["oid"]])
        commit = hub.commit(repo[1], folder)
        return self._json({"commitUrl": f"{hub.url}/{repo[1]}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.hub.large_files[self.path.rsplit("/", 1)[1]] = content
        self._json({})

    def _json(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        hub = self.server.hub
        path = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        if path is None:
            return self._error(404, "NotFound")
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        repo, revision, file = map(unquote, path.groups())
        self._request = Request(self.command, repo, revision, file, token)
        hub.on_request(self._request)
        repository = hub.repositories.get(repo)
        if repository is None or (not repository.gated and repository.token not in (None, token)):
            return self._error(401, "RepoNotFound")
        commit = revision if revision in repository.commits else repository.branches.get(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if repository.gated and repository.token != token:
            return self._error(401 if token is None else 403, "GatedRepo", {"X-Repo-Commit": commit})
        for fault in hub.faults:
            if fault.file == file and self.command in fault.methods and fault.times:
                fault.times -= 1
                if fault.status is not None:
                    return self._error(fault.status, None, fault.headers)
                return self._file(repository.commits[commit], commit, fault)
        self._file(repository.commits[commit], commit)

    def _file(self, folder: Path, commit: str, fault: Fault | None = None) -> None:
        path = folder / self._request.file
        if not path.is_file():
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = path.read_bytes()
        etag, size, start, status = hashlib.sha256(content).hexdigest(), len(content), 0, 200
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted:
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self._send(status, {**headers, **(fault.headers if fault else {})}, content[start:], fault)

    def _error(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(status, {**named, **(headers or {})}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        if hasattr(self, "_request"):
            request = replace(self._request, status=status)
            self.server.hub.requests.append(request)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if fault and fault.drips == "headers":
            self.send_header("X-Endless", "")
            self.wfile.write(b"".join(self._headers_buffer).removesuffix(b"\r\n"))  # type: ignore[attr-defined]
            return self._drip(b"x")
        self.end_headers()
        end = fault.length if fault else None
        if self.command == "GET":
            self.wfile.write(body[:end])
            if fault and fault.drips:
                self._drip(b"x" if fault.drips == "body" else b"")
        if end is not None:
            self.close_connection = True

    def _drip(self, byte: bytes) -> None:
        """Send this every tenth of a second until the client or the Hub goes away."""
        with contextlib.suppress(OSError):
            while not self.server.hub.stopped.wait(0.1):
                self.wfile.write(byte)
        self.close_connection = True
