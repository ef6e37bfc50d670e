"""A server in a thread, with two small random models and a sentence encoder."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from msgspec import structs

import pellucid
from pellucid.llm import LLM
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool, Pull
from pellucid.serve.request_spans import RequestSpans
from pellucid.serve.server import create_app
from pellucid.testing import random_model
from support.pages import in_use

CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}\n{% endfor %}{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
)
"""A chat template with tools, and with reasoning if ``enable_thinking`` is set."""
INFILL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
NAMES = ("one", "two", "encoder")


def models_folder(folder: Path) -> Path:
    """Write the models into a folder. Returns the folder."""
    for name in NAMES[:2]:
        path = Path(random_model("llama", folder / name, kind="safetensors", vocabulary=320, context=1024))
        (path / "chat_template.jinja").write_text(CHAT)
        with_control_tokens(path, INFILL)
    random_model("bert", folder / "encoder", kind="safetensors")
    return folder


def with_control_tokens(path: Path, texts: tuple[str, ...] | list[str]) -> None:
    """Turn unused tokens of a random model's tokenizer into control tokens with these texts."""
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    like = tokenizer["added_tokens"][0]
    for number, text in enumerate(texts):
        index = tokenizer["model"]["vocab"].pop(f"<unused{number}>")
        tokenizer["model"]["vocab"][text] = index
        tokenizer["added_tokens"].append({**like, "id": index, "content": text})
    file.write_text(json.dumps(tokenizer))


class Served:
    """A server in a thread.

    ``loads`` lists the models that it has loaded. ``awaited`` lists the requests whose traces viewers wait for.
    """

    def __init__(
        self,
        folder: Path,
        rules: AccessRules,
        limit: int = 1 << 40,
        *,
        tools: bool = False,
        load: Callable[[str], Any] | None = None,
        pull: Pull | None = None,
        spans: RequestSpans | None = None,
        names: Sequence[str] = NAMES,
    ) -> None:
        self.loads = list[str]()

        def load_here(name: str) -> LLM:
            self.loads.append(name)
            llm = pellucid.load(folder / name, threads=2)
            if tools:
                llm.tokenizer = replace(llm.tokenizer, chat_template=CALLS)
                llm.inputs = structs.replace(llm.inputs, tokenizer=llm.tokenizer)
            return llm

        self.models = ModelPool(names, load or load_here, limit, pull=pull)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.app = create_app(self.models, rules, spans=spans)
        self.awaited = list[str]()
        when_running = self.app.state.live.when_running

        async def counted(number: str, *arguments: Any) -> Any:
            self.awaited.append(number)
            try:
                return await when_running(number, *arguments)
            finally:
                self.awaited.remove(number)

        self.app.state.live.when_running = counted
        config = uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def llm(self, name: str = "one") -> Any:
        """The loaded model: an `LLM`, unless ``load`` has made another."""
        made = self.models.llm(name)
        assert made is not None
        return made

    def unused(self, name: str = "one") -> bool:
        """True if the model is loaded and no request uses it."""
        return name in self.models.by_last_use(idle=1e-9)

    def pages_in_use(self) -> int:
        return in_use(self.llm())

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@contextmanager
def serving(
    folder: Path,
    rules: AccessRules | None = None,
    *,
    tools: bool = False,
    load: Callable[[str], Any] | None = None,
    pull: Pull | None = None,
    spans: RequestSpans | None = None,
    names: Sequence[str] = NAMES,
) -> Iterator[Served]:
    """Run a server until the block ends. Its models come from the folder, or from ``load`` by name."""
    made = Served(folder, rules or AccessRules(), tools=tools, load=load, pull=pull, spans=spans, names=names)
    try:
        yield made
    finally:
        made.close()


def asked(served: Served, what: str, **fields: Any) -> Any:
    """The answer of a request to a route of the page for the model "one"."""
    answer = httpx.post(f"{served.url}/look/{what}", json={"model": "one", **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(served: Served, what: str, **fields: Any) -> str:
    """The message of a request that the route refuses."""
    answer = httpx.post(f"{served.url}/look/{what}", json={"model": "one", **fields}, timeout=60)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])
