"""A package index on this machine (PEP 503, PEP 691), whose downloads can break off."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class PackageServer:
    """Serves the wheels of ``folder`` below ``/simple/NAME/``.

    Attributes:
        kind: "json" or "html", the form of a page.
        breaks: a download breaks off after these numbers of bytes, one for each request.
        statuses: the statuses of the next requests, in order; 0: as usual.
        ranges: False to ignore the header Range.
        hashes: False to leave the hashes out.
        changed: other contents of a wheel, by its name.
        password: user:password that every request needs.
        requests: the paths and the ranges of all requests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.kind, self.ranges, self.hashes = folder, "json", True, True
        self.breaks, self.statuses, self.changed = list[int](), list[int](), dict[str, bytes]()
        self.password: str | None = None
        self.links: str | None = None
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_address[1]}"
        self.url = f"http://{self.address}/simple"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, span = request.path, request.headers.get("Range")
        self.requests.append((path, span))
        if self.password is not None:
            wanted = "Basic " + base64.b64encode(self.password.encode()).decode()
            if request.headers.get("Authorization") != wanted:
                self._send(request, 401, b"")
                return
        status = self.statuses.pop(0) if self.statuses else 0
        if status:
            self._send(request, status, b"")
        elif path.startswith("/files/"):
            self._file(request, path.removeprefix("/files/"), span)
        elif page := self._page(path.removeprefix("/simple/").strip("/")):
            kind = "application/vnd.pypi.simple.v1+json" if self.kind == "json" else "text/html; charset=utf-8"
            self._send(request, 200, page, {"Content-Type": kind})
        else:
            self._send(request, 404, b"")

    def _page(self, name: str) -> bytes | None:
        files = sorted(self.folder.glob(f"{name.replace('-', '_')}-*"))
        if not files:
            return None
        if self.links is not None:
            return self.links.encode()
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        if self.kind == "json":
            entries = [
                {
                    "filename": file.name,
                    "url": f"/files/{file.name}",
                    "hashes": {"sha256": hashes[file.name]} if self.hashes else {},
                    "size": file.stat().st_size,
                }
                for file in files
            ]
            return json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": entries}).encode()
        anchors = [
            f'<a href="../../files/{file.name}{f"#sha256={hashes[file.name]}" if self.hashes else ""}">{file.name}</a>'
            for file in files
        ]
        return ("<!DOCTYPE html><html><body>" + "<br>\n".join(anchors) + "</body></html>").encode()

    def _file(self, request: BaseHTTPRequestHandler, name: str, span: str | None) -> None:
        content = self.changed.get(name) or (self.folder / name).read_bytes()
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        if start >= len(content):
            self._send(request, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        limit = self.breaks.pop(0) if self.breaks else None
        self._send(request, 206 if start else 200, content[start:], headers, limit)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content[:limit])
        if limit is not None:
            request.close_connection = True


@contextmanager
def package_server(folder: Path) -> Iterator[PackageServer]:
    """Run an index until the block ends."""
    server = PackageServer(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
