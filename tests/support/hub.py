"""A small hub on this machine: the part of the hub's interface that Pellucid uses. Downloads can break off."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Repositories = Mapping[str, Mapping[str, bytes]]
"""The files of each repository "owner/name"."""


class HubServer:
    """Serves repositories. Files that end in .gguf or .safetensors are in Git LFS.

    Attributes:
        address: http://HOST:PORT.
        commit: the commit of all repositories.
        requests: method, path, range and authorization of all requests.
        breaks: a download breaks off after these numbers of bytes, one for each request.
        replies: statuses and headers of the next requests, in order; None: as usual.
        stated: other properties of files in the list of files, by their names.
        answer: another list of files.
        storage: the address of another server, which has the contents of files.
    """

    def __init__(self, repositories: Repositories) -> None:
        self.repositories, self.commit = repositories, COMMIT
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.breaks: list[int] = []
        self.replies: list[tuple[int, dict[str, str]] | None] = []
        self.stated: dict[str, dict[str, Any]] = {}
        self.answer: bytes | None = None
        self.storage: str | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                server.respond(self)

            def do_GET(self) -> None:
                server.respond(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        span = request.headers.get("Range")
        self.requests.append((request.command, request.path, span, request.headers.get("Authorization")))
        reply = self.replies.pop(0) if self.replies else None
        path = unquote(request.path.partition("?")[0])
        if reply is not None:
            self._send(request, reply[0], reply[1], b"")
        elif path.startswith("/api/") and (listed := self._listed(path)) is not None:
            self._send(request, 200, {}, listed)
        elif (data := self._file(path)) is None:
            self._send(request, 404, {}, b"")
        elif self.storage:
            self._send(request, 302, {"Location": self.storage + request.path}, b"")
        else:
            start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if span else {}
            headers |= {"ETag": f'"{hash_of(path, data)}"', "X-Repo-Commit": self.commit}
            limit = self.breaks.pop(0) if self.breaks else None
            self._send(request, 206 if span else 200, headers, data[start:], limit)

    def _listed(self, path: str) -> bytes | None:
        """The answer about a repository."""
        if self.answer is not None:
            return self.answer
        name = path.removeprefix("/api/models/").removesuffix("/revision/main")
        if name not in self.repositories:
            return None
        siblings = [
            self.stated.get(file, {"size": len(data), **hashes(file, data)}) | {"rfilename": file}
            for file, data in self.repositories[name].items()
        ]
        return json.dumps({"id": name, "sha": self.commit, "siblings": siblings}).encode()

    def _file(self, path: str) -> bytes | None:
        for name, files in self.repositories.items():
            for revision in ("main", self.commit):
                start = f"/{name}/resolve/{revision}/"
                if path.startswith(start) and path[len(start) :] in files:
                    return files[path[len(start) :]]
        return None

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        limit: int | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[:limit])


def hash_of(path: str, data: bytes) -> str:
    """The hash of a file, as the hub states it: of Git LFS, or of Git."""
    found = hashes(path, data)
    return str(found["lfs"]["sha256"] if "lfs" in found else found["blobId"])


def hashes(path: str, data: bytes) -> dict[str, Any]:
    if not path.endswith((".gguf", ".safetensors")):
        return {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    # Git has a few lines with this hash instead of the file, and blobId is the hash of these lines.
    return {"blobId": "0" * 40, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}


@contextmanager
def hub(repositories: Repositories) -> Iterator[HubServer]:
    """A hub with these repositories."""
    server = HubServer(repositories)
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def environment(endpoint: str, folder: Path) -> dict[str, str]:
    """The variables of a fresh process that uses a hub, with its caches in ``folder``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "PELLUCID_HOME": str(folder / "home")}
    return kept | own
