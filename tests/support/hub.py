"""A small hub in this process: the part of the hub's interface that its client uses."""

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

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Repositories = Mapping[str, Mapping[str, bytes]]
"""The files of each repository "owner/name"."""


def handler(repositories: Repositories) -> type[BaseHTTPRequestHandler]:
    """A request handler that serves the repositories."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            data = self._found(self.path.partition("?")[0])
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def _found(self, path: str) -> bytes | None:
            for name, files in repositories.items():
                if path.startswith(f"/api/models/{name}"):
                    siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
                    return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
                for revision in ("main", COMMIT):
                    start = f"/{name}/resolve/{revision}/"
                    if path.startswith(start) and path[len(start) :] in files:
                        return files[path[len(start) :]]
            return None

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Hub


@contextmanager
def hub(repositories: Repositories) -> Iterator[str]:
    """The address of a hub with these repositories."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(repositories))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def environment(endpoint: str, folder: Path) -> dict[str, str]:
    """The variables of a fresh process that uses a hub, with its caches in ``folder``.

    The hub's client reads its settings once, when it is imported.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "PELLUCID_HOME": str(folder / "home")}
    return kept | own
