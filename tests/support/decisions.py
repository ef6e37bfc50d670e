"""Decision models for tests: random models with the metadata of llama.cpp's decision models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.testing import gguf_tokenizer, random_model
from pellucid.tokenize.stages.decode import byte_alphabet
from pellucid.weights.safetensors import open_safetensors
from support.model_files import safetensors

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


CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
FOLDERS: dict[str, tuple[dict[str, Any] | None, str | None]] = {
    "marked": (
        {
            "labels": {"noul": ["Y", "N"], "choice": list("XYZ"), "score": list("0123456789")},
            "temperature": {"noul": 2.5, "choice": 0.5},
            "noul_options": ["false", "true"],
        },
        "<s>[{{ question.type }}] " + text("state") + "\n" + text("question.instructions")
        + "{% for o in question.options %}\n{{ question.labels[loop.index0] }}) {{ o }}"
        "{% if question.descriptions[loop.index0] %}: {{ question.descriptions[loop.index0] | tojson }}{% endif %}"
        "{% endfor %}\n<|split|>=<|mark|>!",
    ),
    "together": (
        {"labels": {"noul": ["Y", "N"]}, "temperature": {"score": 3}},
        "<s>" + text("state") + "{% for q in questions %}\n{{ q.name }}: " + text("q.instructions")
        + "{% for o in q.options %} {{ q.labels[loop.index0] }}={{ o }}{% endfor %}:<|mark|>?{% endfor %}</s>",
    ),
    "calibrated": ({"temperature": {"choice": 1.5, "noul": 0.5}}, None),
    "message": (None, None),
    "headed": (
        {"temperature": {"noul": 0.5}, "noul_options": ["false", "true"]},
        "<s>" + text("state") + "\n" + text("question.instructions")
        + "{% for o in question.options %}\n{{ question.labels[loop.index0] }}) {{ o }}{% endfor %}\n:<|mark|>",
    ),
}  # fmt: skip
"""Decision models as transformers' folders: ``decision.json`` and ``decision_template.jinja``."""


def decision_folder(path: Path, name: str) -> Path:
    """Write a random Qwen 2 as a folder of transformers, whose tokens are the bytes, "Yes" and "No"."""
    config, template = FOLDERS[name]
    folder = random_model("qwen2", path, kind="safetensors", **SHAPE)
    tokenizer_file = folder / "tokenizer.json"
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    for number, piece in enumerate(("Ye", "Yes", "No")):
        vocab[piece] = vocab.pop(f"<unused{number}>")
        merges.append([piece[:-1], piece[-1]])
    tokenizer_file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    if name == "headed":
        _add_head(folder)
    if config is not None:
        (folder / "decision.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (folder / "decision_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _add_head(folder: Path) -> None:
    """Make a language model's folder a decision model with a random head: the class Jev of transformers."""
    inner = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**HEADED, "hidden_size": inner["hidden_size"], "text_config": inner}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random, (path,) = np.random.default_rng(5), folder.glob("*.safetensors")
    with closing(open_safetensors(folder)) as file:
        tensors: dict[str, Any] = {
            name: (tensor.format, tensor.shape, bytes(file.data(name))) for name, tensor in file.tensors.items()
        }
    columns, width = HEADED["num_verbalizers"], inner["hidden_size"]
    for name, shape in (("proj.weight", (columns, width)), ("proj.bias", (columns,))):
        tensors[name] = ("F32", shape, random.normal(0, 0.3, shape).astype("<f4").tobytes())
    path.write_bytes(safetensors(tensors))


HEADED: dict[str, Any] = {
    "model_type": "jev",
    "architectures": ["JevForDecision"],
    "num_verbalizers": 21,
    "offsets": {"noul": 3, "score": 5, "choice": 11},
    "softcap": 2.5,
}


def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
