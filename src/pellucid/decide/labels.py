"""The facts of a model's files about decisions, and the tokens that stand for the options of a question."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.decide.questions import MOST_OPTIONS, TYPES, Option, Question, QuestionType
from pellucid.errors import FileFormatError, UnsupportedModel, brief, shown
from pellucid.model.config import Config
from pellucid.model.decision_heads import LAYA, is_headed, offsets_of
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.chat.template import SOURCE_CHARACTERS
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json

# The facts of a model's files about decisions: the model's type, the template of its prompts, its temperatures.
#
# GGUF files have the keys of llama.cpp:
#
#     <architecture>.decision.type                     the type of the model (``labels.py``)
#     <architecture>.decision.temperature.<question>   the temperature of "choice", "score" or "noul", > 0
#     <architecture>.decision.temperature.<question>.<band>   the temperature for a number of options
#     <architecture>.decision.max_head_tokens          the maximum of tokens before the state, for the type "laya"
#     tokenizer.chat_template.systemone                the Jinja template of a prompt
#
# A folder of transformers has ``decision.json`` with ``labels`` and ``temperature`` by question type and the order
# ``noul_options``, and the template ``decision_template.jinja``, which marks the positions that are read. Without a
# template, the prompt is a message (``prompts.py``).
#
# Sources: ``server_decision_context::init`` and ``get_temperature`` in llama.cpp's tools/server/server-decision.cpp;
# ``transformers.decision.configuration_utils``, version 5.24.

TEMPLATE = "tokenizer.chat_template.systemone"
CONFIG_FILE, TEMPLATE_FILE = "decision.json", "decision_template.jinja"
HEAD_FILES = ("head.safetensors", "readout.safetensors")
"""Files of models whose options are scored by a head of their own (Jev), instead of the logits of labels."""
MARKED = "marked"  # the type of the models of transformers, whose templates mark the positions that are read
Bands = Sequence[tuple[str, int]]  # names of ranges of the number of options, each with its largest number
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


# The tokens that stand for the options of a question: the model scores them as its next token.
#
# Each type of decision model has a scheme: its labels, the order of its options, and how it reads them. A model without
# such a type answers by the letters of its options, if it has a chat template.
#
# Sources: ``server_decision_context`` in llama.cpp's tools/server/server-decision.cpp (``init``, ``d1_labels``,
# ``n_variants``, ``n_outputs``); ``transformers.decision.template_utils``, version 5.24.

RATINGS = 9  # ratings of a yes/no question in the scheme "lev": 0 is certainly no, 8 certainly yes


class Label(Struct, frozen=True):
    """The label of an option: its text in the prompt, and its tokens. The likeliest of the tokens counts."""

    text: str
    tokens: tuple[int, ...]


class LabelScheme(Struct, frozen=True):
    """How a type of decision model labels and reads the options.

    ``codes`` are the texts of labels by question type; None: labels depend on the question (``worded_labels``). With
    ``skips``, codes that are not a single token are left out; otherwise they end the labels. With ``printed``, a
    template of llama.cpp gets the labels.

    With ``true_first``, the first option of a yes/no question is "true". With ``both_orders``, a choice is asked in
    both orders of its options, and the probabilities are averaged. With ``rated``, a yes/no question is answered on a
    scale of ``RATINGS`` ratings. With ``lists_all``, each prompt lists all questions. With ``sorted_keys``, the keys of
    all objects are sorted, with ``sorted_choices`` the options of a choice. With ``unlabelled``, options have no
    labels: the model scores the options themselves (``option_layouts.py``). ``bands`` are the ranges of the number of
    options that have a temperature of their own.
    """

    codes: Mapping[QuestionType, Sequence[str]] | None
    skips: bool = True
    printed: bool = True
    true_first: bool = False
    both_orders: bool = False
    rated: bool = False
    lists_all: bool = False
    sorted_keys: bool = False
    sorted_choices: bool = False
    unlabelled: bool = False
    bands: Bands = BANDS

    def options(self, question: Question) -> tuple[Option, ...]:
        """The options of a question in the order of their labels."""
        if question.type == "choice" and self.sorted_choices:
            return tuple(sorted(question.options, key=lambda one: one.key))
        return question.options[::-1] if question.type == "noul" and self.true_first else question.options

    def orders(self, question: Question) -> int:
        """Number of prompts of a question: 2 if it is asked in both orders."""
        return 2 if self.both_orders and question.type == "choice" and len(question.options) > 1 else 1

    def outputs(self, question: Question) -> int:
        """Number of scores of a prompt of a question."""
        return RATINGS if self.rated and question.type == "noul" else len(question.options)


def single_token(tokenizer: Tokenizer, text: str) -> int | None:
    ids = tokenizer.encode(text, add_special=False)
    return ids[0] if len(ids) == 1 else None


def coded_labels(scheme: LabelScheme, tokenizer: Tokenizer, kind: QuestionType, vocabulary: int) -> list[Label]:
    """The labels of a question type: the codes that are different single tokens below ``vocabulary``."""
    found = dict[int, Label]()
    for code in (scheme.codes or {}).get(kind, ()):
        token = single_token(tokenizer, code)
        if token is not None and token not in found and token < vocabulary:
            found[token] = Label(code, (token,))
        elif not scheme.skips:
            break
        if len(found) == MOST_OPTIONS:
            break
    return list(found.values())


def column_labels(scheme: LabelScheme, kind: QuestionType, offsets: Mapping[str, int], columns: int) -> list[Label]:
    """The labels of a question type in a head with ``columns`` scores (``model/decision_heads.py``)."""
    codes = (scheme.codes or {}).get(kind, ())
    return [Label(code, (column,)) for code, column in zip(codes, range(offsets[kind], columns))]


def worded_labels(scheme: LabelScheme, tokenizer: Tokenizer, question: Question) -> list[Label]:
    """The labels of LFM2-d1: yes and no, the digits of levels, and letters or numbers for the options of a choice."""
    options = scheme.options(question)
    if question.type != "choice":
        words = {"true": ("yes", "Yes", "YES"), "false": ("no", "No", "NO")}
        tokens = [_single(tokenizer, words.get(one.key, (one.key,))) for one in options]
        return [Label(one.key, own) for one, own in zip(options, tokens) if own]
    labels, used = list[Label](), set[int]()
    for code in _own_codes(question):
        for text in (code, *_other_codes()):
            token = single_token(tokenizer, text)
            if token is not None and token not in used:
                used.add(token)
                labels.append(Label(text, tuple(dict.fromkeys((token, *_single(tokenizer, (f" {text}",)))))))
                break
    return labels


def _own_codes(question: Question) -> list[str]:
    """The letters that are the names of all options, or A, B, …, or 00, 01, … for more than 26 options."""
    keys = [one.key for one in question.options]
    if all(len(key) == 1 and key in string.ascii_letters for key in keys):
        return keys
    return [string.ascii_uppercase[at] if len(keys) <= 26 else f"{at:02d}" for at in range(len(keys))]


def _other_codes() -> Iterator[str]:
    yield from string.ascii_uppercase
    yield from (f"{number:02d}" for number in range(100))
    yield from string.ascii_lowercase
    yield from (f"#{number}" for number in range(200))
    yield from map("".join, product(string.ascii_uppercase, repeat=2))


def _single(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, ...]:
    ids = (single_token(tokenizer, text) for text in texts)
    return tuple(dict.fromkeys(token for token in ids if token is not None))


LETTERS = tuple(string.ascii_uppercase)
MANY_LETTERS = dict.fromkeys(TYPES, (*LETTERS, *string.ascii_lowercase))
CODES = dict.fromkeys(TYPES, (*LETTERS, *map("".join, product(LETTERS, repeat=2))))
SCHEMES: Mapping[str, LabelScheme] = {
    "openjev": LabelScheme(MANY_LETTERS, skips=False, printed=False, true_first=True),
    "lev": LabelScheme(
        CODES,
        both_orders=True,
        rated=True,
        sorted_keys=True,
        bands=(("small", 8), ("mid", 26), ("large", MOST_OPTIONS)),
    ),
    "nimble": LabelScheme(CODES, lists_all=True),
    "pplx-decider": LabelScheme(CODES),
    "lfm2-d1": LabelScheme(None, true_first=True),
    "laya": LabelScheme(None, printed=False, unlabelled=True),
    "lfm2-d1-omni": LabelScheme(None, printed=False, unlabelled=True),
    "kev": LabelScheme(None, printed=False, unlabelled=True),
    "clef": LabelScheme(None, printed=False, true_first=True, sorted_choices=True, unlabelled=True),
}
"""The schemes of llama.cpp's types of decision models."""
USUAL: Mapping[QuestionType, Sequence[str]] = {"choice": LETTERS, "score": LETTERS, "noul": ("Yes", "No")}
"""The labels of models whose files state none, and of instruct models."""


def scheme_of(stated: DecisionFormat | None, file: str) -> LabelScheme:
    """The scheme of a decision model. Other models have the labels that transformers uses. Raises UnsupportedModel if
    the type is not implemented.
    """
    if stated is None or stated.type == MARKED:
        labels = {} if stated is None else stated.labels
        codes = {kind: labels.get(kind) or USUAL[kind] for kind in TYPES}
        return LabelScheme(codes, skips=False, true_first=stated is None or stated.true_first)
    if stated.type not in SCHEMES:
        raise UnsupportedModel(
            f"{shown(file)}: decision.type = {shown(stated.type)} is not implemented; implemented are "
            f"{', '.join(SCHEMES)}"
        )
    return SCHEMES[stated.type]
