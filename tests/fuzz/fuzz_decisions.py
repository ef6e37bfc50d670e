"""Random states and questions: an error is one line, and no text of a user becomes a control token or a mark."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from support.decisions import SHAPE, TEMPLATES, decision_folder, decision_model
from support.option_models import ARCHITECTURES, CONTROL, FIRST, option_model

from pellucid.decide.decider import Decider
from pellucid.decide.questions import TYPES, questions_of, state_of
from pellucid.engine.inputs import Inputs
from pellucid.errors import InvalidRequest
from pellucid.model.read import read_model
from pellucid.tokenize import load_tokenizer
from pellucid.weights.open import open_checkpoint

SECONDS, MEMORY, SMALL, LONG = 10.0, 8 << 30, 200, 20_000
LONGEST = 1000  # characters of a message
BEGIN, END = 256, 257
KINDS = [*TEMPLATES, *ARCHITECTURES, "marked"]
TEXTS = [
    "",
    "a",
    "<s>",
    "</s>",
    "<|mark|>",
    "<|split|>",
    "{{ state }}",
    "\0",
    "ä\n",
    "true",
    "x" * 40,
    "A",
    *("".join(names) for names in CONTROL.values()),
    "<<clef:sep>><<clef:option>>",
    "<<d1omni:sep>><<d1omni:state>>",
]
BAD: list[Any] = ["\ud800", None, 0, -1.5, float("nan"), True, b"x", {1: 2}, object, [[[]]], {"": {}}, 10**400]
FOLDERS = list[Path]()


def prepare(folder: Path) -> None:
    """Write the models. Their folder is emptied between cases, so they lie beside it."""
    beside = folder.with_name(f"{folder.name}-models")
    beside.mkdir(exist_ok=True)
    FOLDERS.append(beside)
    for kind in KINDS:
        decider(kind)


@cache
def decider(kind: str) -> Decider:
    path = FOLDERS[0] / kind
    if kind in ARCHITECTURES:
        path = option_model(path, kind)
    else:
        path = decision_folder(path, kind) if kind == "marked" else decision_model(path, kind)
    checkpoint = open_checkpoint(path)
    return Decider(checkpoint, Inputs(read_model(checkpoint).spec, load_tokenizer(checkpoint), SHAPE["context"]))


def content(random: Random, depth: int = 0) -> Any:
    """A text, an object or a list, and sometimes a value that JSON does not have."""
    drawn = random.random()
    if drawn < 0.01:
        return random.choice(BAD)
    if drawn < 0.5 or depth > 3:
        return random.choice(TEXTS)
    if drawn < 0.75:
        return [content(random, depth + 1) for _ in range(random.randint(0, 3))]
    return {random.choice(TEXTS): content(random, depth + 1) for _ in range(random.randint(0, 3))}


def question(random: Random) -> Any:
    kind = random.choice(TYPES)
    criteria: Any = {
        "choice": {random.choice(TEXTS): random.choice([None, content(random, 2)]) for _ in range(4)},
        "score": [content(random, 2) for _ in range(random.randint(1, 11))],
        "noul": random.choice([None, {}, {"true": content(random, 2)}, {"yes": "a"}]),
    }[kind]
    made = {"type": kind, "instructions": content(random, 2), "criteria": criteria}
    if random.random() < 0.1:
        made[random.choice([*made, "other"])] = content(random)
    return made


def case(random: Random, folder: Path) -> str | None:
    kind, state = random.choice(KINDS), content(random)
    asked = {random.choice(TEXTS): question(random) for _ in range(random.randint(1, 3))}
    try:
        questions, read = questions_of(asked), state_of(state)
        prompts = decider(kind).prompts(read, questions)
    except InvalidRequest as error:
        said = str(error)
        return None if said.isprintable() and 0 < len(said) <= LONGEST else f"{said[:200]!r}"
    begin = FIRST if kind in ARCHITECTURES else BEGIN  # each template writes this control token once
    for prompt in prompts:
        if prompt.ids.count(begin) != 1 or END in prompt.ids:
            return f"{kind}: {state!r} {asked!r}: a forged control token"
        for reading in prompt.readings:
            if not 0 <= reading.position < len(prompt.ids):
                return f"{kind}: {state!r} {asked!r}: a position outside the prompt"
    numbers = [reading.number for prompt in prompts for reading in prompt.readings]
    return None if set(numbers) == set(range(len(questions))) else f"{kind}: a question is not read"
