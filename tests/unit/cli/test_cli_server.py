"""Commands that ask a running server, and what `pellucid serve` makes of its models."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.command import Command
from support.server_process import ServerProcess, server_process
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, write_llama_gguf
from support.tokenizer_file import gguf_tokenizer

from pellucid.cli.serving_options import Replicas
from pellucid.weights import store

SHAPES = {**LLAMA_GGUF_SHAPES, "token_embd.weight": (320, 32)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two random models, one.gguf and two.gguf."""
    folder = tmp_path_factory.mktemp("served")
    return [
        str(write_llama_gguf(folder / f"{name}.gguf", LLAMA_GGUF | gguf_tokenizer(), SHAPES)) for name in ("one", "two")
    ]


@pytest.fixture
def running(files: list[str]) -> Iterator[ServerProcess]:
    with server_process(*files, "--key", "user", "--admin-key", "boss") as made:
        yield made


@pytest.mark.slow
def test_ps_and_stop(command: Command, running: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--url", running.url + "/", "--key", "boss")
    (row,) = command("ps", *where, "--json").document
    assert (row["name"], row["context_length"]) == ("one", 128)
    lines = command("ps", *where).answer.splitlines()
    assert lines[0].split() == ["name", "MB", "parameters", "context"]
    assert lines[1].split()[0] == "one"
    assert "'two' is not loaded; loaded: one" in command("stop", "one", "two", *where).refusal
    assert (
        "unloading the model affects other clients and needs an admin key"
        in command("stop", "one", "--url", running.url, "--key", "user").refusal
    )
    assert "key" in command("ps", "--url", running.url).refusal
    monkeypatch.setenv("PELLUCID_KEY", "boss")
    assert command("stop", "one:latest", "one", "--url", running.url).answer == "stopped one\n"
    assert command("ps", "--url", running.url, "--json").document == []
    assert "'one' is not loaded; loaded: none" in command("stop", "one", "--url", running.url).refusal


def test_where_no_server_is(command: Command) -> None:
    for name in (("ps",), ("stop", "one")):
        refused = command(*name, "--url", "http://127.0.0.1:9").refusal
        assert "http://127.0.0.1:9 has no server (ConnectError" in refused
        assert "start one (pellucid serve), or name another with --url" in refused
        assert "has no server" in command(*name, "--url", "nonsense").refusal


@pytest.mark.parametrize("answer", ["[]", '{"models": 5}', '{"models": [{}]}', "<html>"])
def test_another_kind_of_server(command: Command, answer: str) -> None:
    with other_server(answer) as url:
        assert "has no server" in command("ps", "--url", url).refusal


def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `pellucid serve --cluster auto` would serve: the sources and options of each name."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(Replicas, "serve", lambda self, models, *_: found.update(models))
    return found


def test_named_models_are_downloaded_and_others_only_with_pull(
    command: Command, files: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path))
    found = served(monkeypatch)
    assert command("serve", "smollm2", "hf.co/a/b:Q8_0", "--cluster", "auto").code == 0
    assert {name: options.pulls for name, (_, options) in found.items()} == {"smollm2": True, "hf.co/a/b:Q8_0": True}
    assert "there is no model on this machine" in command("serve", "--cluster", "auto").refusal
    here = store.Installed("mine", Path(files[0]), 5, "hf:me/mine", True)
    monkeypatch.setattr(store, "installed", lambda: [here])
    found.clear()
    assert command("serve", "--cluster", "auto").code == 0
    assert {name: options.pulls for name, (_, options) in found.items()} == {"mine": False}
    found.clear()
    assert command("serve", "--cluster", "auto", "--pull").code == 0
    assert {"mine", "smollm2"} <= found.keys()
    assert all(options.pulls for _, options in found.values())


def test_a_name_for_the_first_model(command: Command, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = served(monkeypatch)
    assert command("serve", *files, "--served-model-name", "gpt", "--cluster", "auto").code == 0
    assert {name: source for name, (source, _) in found.items()} == {"gpt": files[0], "two": files[1]}
    assert "must be NAME=FILE" in command("serve", "--alias", "gpt", "--cluster", "auto").refusal


class other_server:  # noqa: N801 - a context manager, called like a function
    """A server whose every answer is ``text``."""

    def __init__(self, text: str) -> None:
        import threading
        from http.server import HTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
