"""Decision models for tests: random models with the metadata of llama.cpp's decision models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pellucid.testing import random_model
from pellucid.testing.byte_tokens import gguf_tokenizer
from pellucid.tokenize.stages.decode import byte_alphabet

GOLDEN = Path(__file__).parents[1] / "goldens" / "decide" / "decisions.json"
SHAPE = {"vocabulary": 320, "context": 1024, "layers": 3}
TEXT = "{{ %s if %s is string else %s | tojson }}"


def text(name: str) -> str:
    return TEXT % (name, name, name)


OPTION = "{{ o.key }}{% if o.description %}: " + text("o.description") + "{% endif %}"
TEMPLATES = {
    "openjev": "<s>State: " + text("state") + "\n{{ type }}: " + text("instructions") + "\n{% set letters = 'ABCDEF' %}"
    "{% for o in options %}{{ letters[loop.index0] }}) " + OPTION + "\n{% endfor %}Answer: ",
    "lev": "<s>" + text("state") + "\n# " + text("instructions")
    + "{% if type == 'noul' %} 0 to 8{% else %}{% for o in options %}\n{{ o.label }}. " + OPTION
    + "{% endfor %}{% endif %}\n=",
    "nimble": "<s>" + text("state") + "{% for q in questions %}\n{{ q.id }}: " + text("q.instructions")
    + "{% for o in q.options %} {{ o.label }}={{ o.key }}{% endfor %}{% endfor %}\nfield {{ id }}:",
}  # fmt: skip
"""Templates of our own with the variables and the readouts of each type."""
TEMPERATURES: dict[str, dict[str, float]] = {
    "openjev": {"choice": 1.5, "noul": 0.75},
    "lev": {"choice.small": 2.0, "choice": 9.0, "noul": 1.25},
    "nimble": {},
}
STATES: list[Any] = ["I was charged twice.", {"ticket": "Größe 5 fehlt", "plan": ["pro", 2]}]
QUESTIONS: dict[str, Any] = {
    "team": {
        "type": "choice",
        "instructions": "Which team?",
        "criteria": {"billing": "payments", "shipping": None, "technical": {"areas": ["app", "web"]}},
    },
    "urgency": {"type": "score", "instructions": {"rate": "urgency"}, "criteria": ["low", "mid", "high", "now"]},
    "angry": {"type": "noul", "instructions": "Angry?", "criteria": {"true": "insults us"}},
}  # fmt: skip


def metadata(kind: str, template: str | None = None, words: Sequence[str] = ()) -> dict[str, Any]:
    """Keys of a decision model of a kind, and of a tokenizer of bytes and ``words``."""
    temperatures = TEMPERATURES.get(kind, {})
    return {
        **tokenizer(words),
        "tokenizer.chat_template.systemone": TEMPLATES[kind] if template is None else template,
        "decision.type": kind,
        **{f"decision.temperature.{name}": value for name, value in temperatures.items()},
    }


def tokenizer(words: Sequence[str] = ()) -> dict[str, Any]:
    """Keys of a tokenizer whose tokens are the bytes, and each of the ``words``."""
    keys = gguf_tokenizer(SHAPE["vocabulary"])
    pieces, types, merges = list(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"].copy(), []
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    for word in words:
        piece = "".join(spelling[byte] for byte in word.encode())
        for end in range(2, len(piece) + 1):
            if piece[:end] not in pieces:
                at = pieces.index(next(one for one in pieces if one.startswith("<unused")))
                pieces[at], types[at] = piece[:end], 1
                merges.append(f"{piece[: end - 1]} {piece[end - 1]}")
    return {
        **keys,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def decision_model(path: Path, kind: str, family: str = "qwen2", **more: Any) -> Path:
    """Write a random decision model of a kind."""
    given = {name: more.pop(name) for name in ("template", "words") if name in more}
    return random_model(family, path, metadata=metadata(kind, **given), **SHAPE, **more)


def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
