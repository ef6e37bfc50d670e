"""The facts of a model's files about decisions: the model's type, the template of its prompts, its temperatures.

GGUF files have the keys of llama.cpp:

    <architecture>.decision.type                     the type of the model (``labels.py``)
    <architecture>.decision.temperature.<question>   the temperature of "choice", "score" or "noul", > 0
    <architecture>.decision.temperature.<question>.<band>   the temperature for a number of options
    <architecture>.decision.max_head_tokens          the maximum of tokens before the state, for the type "laya"
    tokenizer.chat_template.systemone                the Jinja template of a prompt

A folder of transformers has ``decision.json`` with ``labels`` and ``temperature`` by question type and the order
``noul_options``, and the template ``decision_template.jinja``, which marks the positions that are read. Without a
template, the prompt is a message (``prompts.py``).

Sources: ``server_decision_context::init`` and ``get_temperature`` in llama.cpp's tools/server/server-decision.cpp;
``transformers.decision.configuration_utils``, version 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.decide.questions import TYPES, Question
from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief, shown
from pellucid.model.config import Config
from pellucid.model.decision_blocks import LAYA
from pellucid.model.decision_head import is_headed, offsets_of
from pellucid.tokenize.chat.template import SOURCE_CHARACTERS
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json

TEMPLATE = "tokenizer.chat_template.systemone"
CONFIG_FILE, TEMPLATE_FILE = "decision.json", "decision_template.jinja"
HEAD_FILES = ("head.safetensors", "readout.safetensors")
"""Files of models whose options are scored by a head of their own (Jev), instead of the logits of labels."""
MARKED = "marked"
"""The type of the models of transformers, whose templates mark the positions that are read."""
Bands = Sequence[tuple[str, int]]
"""Names of ranges of the number of options, each with its largest number."""
BANDS: Bands = (("2", 2), ("3_5", 5), ("6_10", 10), ("11", 255))


class DecisionFormat(Struct, frozen=True):
    """The ``type`` of a decision model, the Jinja source of its prompts (None: messages), and its temperatures.

    ``temperatures`` are by question and band. ``labels`` are the labels of options by question, and ``true_first`` is
    the order of the options of a yes/no question, for the type ``MARKED``.
    """

    type: str
    template: str | None
    temperatures: Mapping[str, float]
    labels: Mapping[str, Sequence[str]] = {}
    true_first: bool = True
    columns: Mapping[str, int] = {}
    """The first columns of question types in a head that scores options; empty: the logits of labels are scored."""
    max_head_tokens: int = 0
    """The maximum of tokens before the state, for models that score options at marks (``MarkedOptions``)."""

    def temperature(self, question: Question, bands: Bands) -> float | None:
        """The temperature that divides the scores of a question's options; None if the files state none."""
        band = next(name for name, most in bands if len(question.options) <= most)
        stated = (self.temperatures.get(name) for name in (f"{question.type}.{band}", question.type))
        return next((one for one in stated if one is not None), None)


def decision_format(checkpoint: Checkpoint) -> DecisionFormat | None:
    """The format that a model's files state; None if the model is not a decision model.

    Raises:
        FileFormatError: the template is missing, or a value is wrong, such as a temperature of 0.
        UnsupportedModel: the model has a head of its own, or an adapter.
    """
    if checkpoint.kind == "gguf":
        return _of_gguf(checkpoint.path, checkpoint.metadata)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    found = _of_folder(folder)
    if not is_headed(checkpoint):
        return found
    return replace(found or DecisionFormat(MARKED, None, {}), columns=offsets_of(checkpoint))


def _of_gguf(path: Path, metadata: Mapping[str, Any]) -> DecisionFormat | None:
    prefix = f"{metadata.get('general.architecture')}.decision."
    kind = metadata.get(f"{prefix}type")
    if not isinstance(kind, str):
        return None
    template = metadata.get(TEMPLATE)
    if not isinstance(template, str) or not template:
        raise FileFormatError(path, TEMPLATE, "is missing: a decision model must have it")
    start = f"{prefix}temperature."
    stated = {key[len(start) :]: value for key, value in metadata.items() if key.startswith(start)}
    found = DecisionFormat(kind, template, _temperatures(path, start, stated))
    if kind != LAYA:
        return found
    most = Config(metadata, path).count(f"{prefix}max_head_tokens")
    return replace(found, max_head_tokens=most)


def _of_folder(folder: Path) -> DecisionFormat | None:
    path, template_path = folder / CONFIG_FILE, folder / TEMPLATE_FILE
    for name in HEAD_FILES:
        if (folder / name).is_file():
            raise UnsupportedModel(
                f"{shown(folder.name)}: {name} is the head of a decision model, which is not implemented; models that "
                f"score labels are ({CONFIG_FILE})"
            )
    if not path.is_file() and not template_path.is_file():
        return None
    values = read_json(path) if path.is_file() else {}
    template = _template(template_path) if template_path.is_file() else values.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise FileFormatError(path, "chat_template", f"is {brief(template)}: must be a text")
    if values.get("adapter") is not None:
        raise UnsupportedModel(
            f"{shown(folder.name)}: {CONFIG_FILE} names an adapter ({brief(values['adapter'])}): merge the adapter "
            "into the weights, and set adapter to null"
        )
    labels, temperature = (_by_question(path, name, values.get(name)) for name in ("labels", "temperature"))
    for name, listed in labels.items():
        if not isinstance(listed, list) or not all(isinstance(one, str) and one for one in listed):
            raise FileFormatError(path, f"labels.{name}", f"is {brief(listed)}: must be a list of texts")
    order = values.get("noul_options", ["true", "false"])
    if order not in (["true", "false"], ["false", "true"]):
        raise FileFormatError(path, "noul_options", f"is {brief(order)}: must order true and false")
    temperatures = _temperatures(path, "temperature.", temperature)
    return DecisionFormat(MARKED, template, temperatures, labels, order[0] == "true")


def _by_question(path: Path, name: str, value: Any) -> dict[str, Any]:
    """An object with values by question type."""
    given = {} if value is None else value
    if not isinstance(given, dict) or set(given) - set(TYPES):
        raise FileFormatError(path, name, f"is {brief(value)}: must be an object with {', '.join(TYPES)}")
    return given


def _temperatures(path: Path, start: str, stated: Mapping[str, Any]) -> dict[str, float]:
    for name, value in stated.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise FileFormatError(path, f"{start}{name}", f"is {brief(value)}: must be a number above 0")
    return {name: float(value) for name, value in stated.items()}


def _template(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(path, "file", "is not UTF-8", error.start) from None
    if len(text) > SOURCE_CHARACTERS:
        raise FileFormatError(path, "file", f"has more than {SOURCE_CHARACTERS:,} characters")
    return text
