"""Dictionaries of a server by name: "NAME=PATH", "PATH", "FOLDER" of dictionaries, or "NAME=PATH,reads=HOOK"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.dictionaries.dictionary import Dictionary, is_dictionary
from pellucid.trace.traced_model import TracedModel

NAME = re.compile(r"[\w][\w.-]{0,63}")
HOOKS = ("reads", "writes")
MOST = 256
"""Maximum number of dictionaries of a model."""


def named_dictionaries(given: Sequence[str], model: TracedModel) -> Mapping[str, Dictionary]:
    """Open dictionaries for a model.

    Raises:
        InvalidRequest: a name is wrong or given twice, there are too many, or a dictionary is for another model.
        FileFormatError: a file is damaged, or no dictionary is there.
    """
    opened = dict[str, Dictionary]()
    for text in given:
        path, hooks = _hooks(text)
        for name, one in _named(path):
            if not NAME.fullmatch(name) or name in opened or len(opened) >= MOST:
                reason = "is given twice" if name in opened else "must have letters, digits, _, - and . alone"
                if len(opened) >= MOST:
                    reason = f"is one too many: {MOST} dictionaries may be given"
                raise InvalidRequest(
                    f"dictionaries={brief(text)}: the name {brief(name)} {reason}: give NAME=PATH"
                )
            opened[name] = Dictionary.open(one, model, reads=hooks.get("reads"), writes=hooks.get("writes"))
    return opened


def _hooks(text: str) -> tuple[str, dict[str, str]]:
    """The text before the hooks, and the hooks."""
    first, *others = re.split(rf",(?=(?:{'|'.join(HOOKS)})=)", text)
    return first, dict(other.split("=", 1) for other in others)


def _named(text: str) -> Iterator[tuple[str, Path]]:
    """The names and paths of the dictionaries that a text names."""
    name, equals, path = text.partition("=")
    if equals:
        yield name, Path(path)
        return
    folder = Path(text)
    inside = sorted(one for one in folder.iterdir() if is_dictionary(one)) if folder.is_dir() else []
    if is_dictionary(folder) or not inside:
        yield folder.name.removesuffix(folder.suffix if folder.is_file() else ""), folder
    else:
        yield from ((one.stem if one.is_file() else one.name, one) for one in inside)
