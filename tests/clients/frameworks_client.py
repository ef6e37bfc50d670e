"""litellm in three APIs, langchain-openai, and the program llm give the same answers as the server itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import httpx
import litellm
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1], "qwen2.5-coder-0.5b"
MESSAGES = [{"role": "user", "content": "Say hi"}]
FIELDS = {"temperature": 0, "max_tokens": 20}


def direct() -> str:
    body = {"model": MODEL, "messages": MESSAGES, **FIELDS}
    return httpx.post(f"{URL}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"]


def with_litellm(wanted: str) -> None:
    for model, base in ((f"openai/{MODEL}", f"{URL}/v1"), (f"ollama_chat/{MODEL}", URL), (f"anthropic/{MODEL}", URL)):
        asked = {"model": model, "api_base": base, "api_key": "none", "messages": MESSAGES, **FIELDS}
        assert litellm.completion(**asked).choices[0].message.content == wanted, model
        pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(stream=True, **asked)]
        assert "".join(pieces) == wanted, model


def with_litellms_errors() -> None:
    """Each error is raised as litellm's class for it."""
    text = [{"role": "user", "content": "word " * 9000}]
    late = {"deadline": 0.001}
    for api, base, soon in (("openai", f"{URL}/v1", {"extra_body": late}), ("anthropic", URL, late)):
        asked = {"api_base": base, "api_key": "none", "max_retries": 0}
        for kind, more in (
            (litellm.ContextWindowExceededError, {"model": f"{api}/{MODEL}", "messages": text}),
            (litellm.NotFoundError, {"model": f"{api}/no-such-model", "messages": MESSAGES}),
            (litellm.BadRequestError, {"model": f"{api}/{MODEL}", "messages": MESSAGES, "max_tokens": 0}),
            (litellm.Timeout, {"model": f"{api}/{MODEL}", "messages": MESSAGES, **soon}),
        ):
            try:
                litellm.completion(**asked, **more)
            except kind:
                continue
            raise AssertionError(f"{api}: {kind.__name__} was not raised")


@tool
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


class Colour(BaseModel):
    """A colour."""

    name: str
    warm: bool


def with_langchain(wanted: str) -> None:
    chat = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_tokens=20)
    assert chat.invoke("Say hi").content == wanted
    assert "".join(str(piece.content) for piece in chat.stream("Say hi")) == wanted
    longer = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_tokens=100)
    (call,) = longer.bind_tools([add], tool_choice="add").invoke("What is 2 + 3?").tool_calls
    assert call["args"] == {"a": 2, "b": 3}, call
    assert isinstance(longer.with_structured_output(Colour).invoke("Name a colour"), Colour)


def with_llm(wanted: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        known = f"- model_id: own\n  model_name: {MODEL}\n  api_base: {URL}/v1\n"
        (Path(folder) / "extra-openai-models.yaml").write_text(known)
        options = [part for name, value in FIELDS.items() for part in ("-o", name, str(value))]
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "own", "Say hi", "--key", "none", *options],
            env={**os.environ, "LLM_USER_PATH": folder}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.strip() == wanted.strip(), done


if __name__ == "__main__":
    answer = direct()
    with_litellm(answer)
    with_litellms_errors()
    with_langchain(answer)
    with_llm(answer)
