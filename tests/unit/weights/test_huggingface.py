"""The hub: the choice of files, downloads from a small hub in this process, and quick failures."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import SourceError
from pellucid.weights.sources.schemes import huggingface as module
from pellucid.weights.sources.schemes.huggingface import choose, parse

SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            [
                "README.md",
                "config.json",
                "model.safetensors",
                "pytorch_model.bin",
                "tokenizer.json",
                "vocab.txt",
            ],
            ["config.json", "tokenizer.json", "vocab.txt", "model.safetensors"],
        ),
        (
            ["1_Pooling/config.json", "config.json", "model.safetensors", "onnx/model.onnx", "x.gguf"],
            ["config.json", "1_Pooling/config.json", "model.safetensors"],
        ),
        (["config.json", INDEX, *SHARDS, "extra.safetensors"], ["config.json", INDEX, *SHARDS]),
        (["config.json", INDEX, "model.safetensors", *SHARDS], ["config.json", "model.safetensors"]),
        (["config.json", "weights.safetensors"], ["config.json", "weights.safetensors"]),
        (["only.gguf", "config.json"], ["only.gguf"]),
        (["a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "mmproj-a-f16.gguf"], ["a-Q4_K_M.gguf"]),
        (["a.q8_0.gguf", "a.q2_k.gguf"], ["a.q8_0.gguf"]),
        (
            ["Q4_0/a-Q4_0-00001-of-00002.gguf", "Q4_0/a-Q4_0-00002-of-00002.gguf", "a-Q8_0.gguf"],
            ["Q4_0/a-Q4_0-00001-of-00002.gguf", "Q4_0/a-Q4_0-00002-of-00002.gguf"],
        ),
        (["a-IQ4_XS.gguf", "a-BF16.gguf", "a-F16.gguf"], ["a-IQ4_XS.gguf"]),
        (["a-Q8_K.gguf", "a-BF16.gguf", "a-F16.gguf"], ["a-F16.gguf"]),
    ],
)
def test_choice(names: list[str], chosen: list[str]) -> None:
    assert choose("o/r", names) == chosen


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"],
            "several models, name one: hf:o/r/FILE with a-Q4_K_M.gguf, b-Q4",
        ),
        (["a-IQ1_S.gguf", "a-IQ2_S.gguf"], "several models"),
        (["config.json", "a.safetensors", "b.safetensors"], "several models"),
        (["pytorch_model.bin"], "neither safetensors with a config.json nor GGUF; it has pytorch_model.bin"),
        ([], "it has nothing"),
    ],
)
def test_unclear_choice_lists_what_there_is(names: list[str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        choose("o/r", names)


def test_spec() -> None:
    assert parse("org/repo") == parse("org/repo/") == ("org/repo", None)
    assert parse("org/repo/sub/f.gguf") == ("org/repo", "sub/f.gguf")
    for bad in ("repo", "-x/y", "org/repo/../x", "org/repo//x", "org/repo/a\\b", "o rg/repo", "../x"):
        with pytest.raises(SourceError, match="is not"):
            parse(bad)


def test_hub_that_never_answers_costs_the_deadline_only() -> None:
    start = time.monotonic()
    forever = threading.Event()
    with pytest.raises(SourceError, match=r"did not answer within 0\.05 seconds"):
        module._within(0.05, forever.wait)
    assert time.monotonic() - start < 30
    forever.set()


def test_offline_mode_is_respected(no_hub: None, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(?i)offline"):
        module.SOURCE.fetch("org/repo", tmp_path, _Silent(), None)
    assert module.SOURCE.cached("org/repo") is None
    assert module.SOURCE.cached("org/repo/file") is None


class _Silent:
    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        pass


SPLIT = [f"sub/m-0000{n}-of-00002.gguf" for n in (1, 2)]
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"no",
    **dict.fromkeys(SPLIT, b"gguf"),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that its client uses."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.partition("/resolve/main/")[2] or self.path.partition(f"/resolve/{COMMIT}/")[2]
        if self.path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            data = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif name in FILES:
            data = FILES[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


RESOLVE = """
import json, sys
from pellucid.errors import PellucidError
from pellucid.weights.store import resolve
calls = []
class Seen:
    def update(self, done, total, label): calls.append([done, total, label])
for spec in sys.argv[1:]:
    calls.clear()
    try:
        print(json.dumps([str(resolve(spec, progress=Seen())), calls]))
    except PellucidError as error:
        print(json.dumps([str(error), calls]))
"""


def run(tmp_path: Path, endpoint: str, *specs: str) -> list[tuple[str, list[Any]]]:
    """Resolve in a fresh process, as the hub's client reads its settings once, when it is imported."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "PELLUCID_HOME": str(tmp_path / "home"),
    }
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
    }
    command = [sys.executable, "-c", RESOLVE, *specs]
    output = subprocess.check_output(command, text=True, env=environment | settings, cwd=tmp_path)
    return [tuple(json.loads(line)) for line in output.splitlines()]


def test_fetch_and_find_again_without_the_hub(tmp_path: Path, hub: str) -> None:
    split = f"hf:org/tiny/{SPLIT[1]}"
    (folder, calls), (file, _), (absent, _), (part, _) = run(
        tmp_path, hub, "org/tiny", "hf:org/tiny/config.json", "hf:org/tiny/nope.gguf", split
    )
    got = sorted(p.name for p in Path(folder).iterdir() if p.is_file())
    assert got == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(folder) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [7000, 7000, "model.safetensors"] in calls
    assert Path(file).read_bytes() == FILES["config.json"]
    assert "has no file 'nope.gguf'; it has config.json" in absent
    assert all((Path(folder) / name).is_file() for name in SPLIT)
    assert Path(part).is_file()
    nowhere = "http://127.0.0.1:9"  # the discard port refuses connections
    start = time.monotonic()
    (again, none), (failed, _), (part, _) = run(tmp_path, nowhere, "hf:org/tiny", "org/other", split)
    assert time.monotonic() - start < 60
    assert (again, none) == (folder, [])
    assert Path(part) == Path(folder) / SPLIT[1]
    assert (
        "there is no file or folder 'org/other'; cannot fetch hf:org/other: the hub cannot be reached"
        in failed
    )
