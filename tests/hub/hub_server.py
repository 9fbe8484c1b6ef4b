"""A Hugging Face hub on 127.0.0.1, as much of it as huggingface_hub and datasets ask for.

    with Hub(root) as hub:
        subprocess.run(command, env=os.environ | hub.environment(cache))

root holds `models/<owner>/<name>/` and `datasets/<owner>/<name>/`, the files of each repository.
Weights and tables are large files (their etag is a sha256), all others git blobs. `hub.faults`
says what is wrong with a repository, `hub.asked` which paths were asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = {".safetensors", ".parquet", ".gz", ".bin", ".model"}


@dataclass
class Fault:
    """gated: status of an answer about its files, 401 (nobody is logged in) or 403 (terms are not
    accepted). cut: bytes of the file `file` that arrive (once: only the first time). lost: `file`
    is listed and not there. wait: seconds before each answer about a file. down: all are 500."""

    gated: int = 0
    file: str = ""
    cut: int = 0
    once: bool = False
    lost: bool = False
    wait: float = 0.0
    down: bool = False

    def of(self, file: str) -> Fault:
        return replace(self, file=file)


@dataclass
class Hub:
    root: Path
    faults: dict[str, Fault] = field(default_factory=dict)  # "models/owner/name" -> what is wrong
    asked: list[str] = field(default_factory=list)  # "GET /owner/name/resolve/main/x.json bytes=9-"

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, cache: Path, offline: bool = False) -> dict[str, str]:
        """Variables of a process that asks this hub and no other, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "1" if offline else "",
            "HF_HUB_DOWNLOAD_TIMEOUT": "3",
            "HF_HUB_ETAG_TIMEOUT": "3",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "",
            "REPRO_DATA": "",
            "REPRO_MODELS": "",
        }

    def files(self, repository: str) -> dict[str, Path]:
        """name -> path of the files of `models/owner/name` or `datasets/owner/name`."""
        folder = self.root / repository
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in paths}

    def commit(self, repository: str) -> str:
        """Changes with the content."""
        listed = [f"{name} {etag(path)}" for name, path in self.files(repository).items()]
        return hashlib.sha1("\n".join([repository, *listed]).encode()).hexdigest()

    def downloads(self, repository: str) -> list[str]:
        """The files of a repository whose content was asked for, in order, with the range."""
        start = f"GET /{repository.removeprefix('models/')}/resolve/"
        lines = [line.removeprefix(start) for line in self.asked if line.startswith(start)]
        return [line.partition("/")[2] for line in lines]


def etag(path: Path) -> str:
    """sha256 of a large file, else git's hash of a blob."""
    content = path.read_bytes()
    if path.suffix in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, path: Path) -> dict[str, Any]:
    """A file as the hub's listing of a tree has it."""
    content, commit = path.read_bytes(), {"id": "0" * 40, "title": "made up"}
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    row["lastCommit"] = commit | {"date": "2020-01-01T00:00:00.000Z"}
    if path.suffix in LARGE:
        row["lfs"] = {"oid": etag(path), "size": len(content), "pointerSize": 130}
    return row


class Answer(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass  # the tests' output is no log of a server

    def respond(self) -> None:
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        self.hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = path.strip("/").split("/")
        try:
            if parts[0] == "api":
                self.about(parts[1:], urllib.parse.parse_qs(query), body)
            else:
                kind = parts.pop(0) if parts[0] == "datasets" else "models"
                self.file("/".join([kind, *parts[:2]]), parts[3:4], "/".join(parts[4:]))
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked has left

    # -- what is asked

    def about(self, parts: list[str], query: dict[str, list[str]], body: str) -> None:
        """/api/<kind>/<owner>/<name>[/revision/<r> | /tree/<r>/<folder> | /paths-info/<r>]"""
        repository, (what, *rest) = "/".join(parts[:3]), [*parts[3:], ""]
        files = self.hub.files(repository) if len(parts) >= 3 else {}
        if self.refused(repository, files):
            return
        commit = self.hub.commit(repository)
        if what in ("", "revision"):
            if rest[:1] not in ([], ["main"], [commit]):  # refs/convert/parquet, tags
                return self.fail(404, "RevisionNotFound")
            gated = "manual" if self.fault(repository).gated else False
            listed = [{"rfilename": name} for name in files]
            self.send({"id": "/".join(parts[1:3]), "sha": commit, "siblings": listed,
                       "private": False, "gated": gated, "disabled": False, "tags": [],
                       "downloads": 0, "likes": 0})  # fmt: skip
        elif what == "tree":
            folder = "/".join(filter(None, rest[1:]))
            everything = query.get("recursive", ["false"])[0].lower() == "true"
            rows = listing(files, folder, everything)
            self.send(rows) if rows else self.fail(404, "EntryNotFound")
        elif what == "paths-info":
            asked = named(body, self.headers.get("Content-Type", ""))
            rows = [row for row in listing(files, "", True) if row["path"] in asked]
            self.send(rows)
        else:
            self.fail(404, "EntryNotFound")

    def file(self, repository: str, revision: list[str], name: str) -> None:
        """[/datasets]/<owner>/<name>/resolve/<revision>/<file>"""
        files, fault = self.hub.files(repository), self.fault(repository)
        if self.refused(repository, files):
            return
        if fault.gated:
            return self.fail(fault.gated, "GatedRepo")
        if revision not in (["main"], [self.hub.commit(repository)]):
            return self.fail(404, "RevisionNotFound")
        if name not in files or (fault.lost and name == fault.file):
            return self.fail(404, "EntryNotFound")
        time.sleep(fault.wait)
        self.content(repository, files[name], fault if name == fault.file else Fault())

    def content(self, repository: str, path: Path, fault: Fault) -> None:
        """The file, or the range of it that was asked for."""
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{etag(path)}"')
        self.send_header("X-Repo-Commit", self.hub.commit(repository))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.cut and self.command == "GET":
            last = min(last, fault.cut - 1)
            self.close_connection = True
            if fault.once:
                self.hub.faults.pop(repository)
        self.wfile.write(content[first : last + 1])

    # -- how it is answered

    def fault(self, repository: str) -> Fault:
        return self.hub.faults.get(repository, Fault())

    def refused(self, repository: str, files: dict[str, Path]) -> bool:
        if self.fault(repository).down:
            self.fail(500, "")
        elif not files:
            self.fail(404, "RepoNotFound")
        else:
            return False
        return True

    def fail(self, status: int, code: str) -> None:
        self.send({"error": code or "the hub is out of order"}, status, {"X-Error-Code": code})

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def listing(files: dict[str, Path], folder: str, everything: bool) -> list[dict[str, Any]]:
    """The files and folders below a folder, or directly in it."""
    start = f"{folder}/" if folder else ""
    inside = {name: path for name, path in files.items() if name.startswith(start)}
    folders = {
        "/".join(name.split("/")[:depth])
        for name in inside
        for depth in range(1, name.count("/") + 1)
    }
    rows = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
    rows += [entry(name, path) for name, path in inside.items()]
    rows = [row for row in rows if row["path"].startswith(start)]
    return [row for row in rows if everything or "/" not in row["path"].removeprefix(start)]


def named(body: str, kind: str) -> list[str]:
    """The paths of a request about some: a form, or JSON."""
    if "json" in kind:
        paths = json.loads(body)["paths"]
        return paths if isinstance(paths, list) else [paths]
    return urllib.parse.parse_qs(body).get("paths", [])
