"""The part of YAML in circuit-tracer's ``config.yaml``: names with texts or numbers, and lists of texts."""

from __future__ import annotations

import re
from pathlib import Path

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief
from pellucid.weights.files import ModelFile

LONGEST = 1 << 20
ENTRY = re.compile(r"([A-Za-z_][\w-]*):(?:\s+(.*))?")
ITEM = re.compile(r"\s*-\s+(.*)")


def read_config(path: Path) -> dict[str, str | list[str]]:
    """The entries of a file. Raises FileFormatError if it has anything but names with texts, and lists of texts."""
    file = ModelFile(path)
    try:
        if file.size > LONGEST:
            raise FileFormatError(path, "file", f"{file.size:,} bytes are above the limit of {LONGEST:,}")
        lines = file.read(0, file.size).decode("utf-8", "replace").splitlines()
    finally:
        file.close()
    entries, last = dict[str, str | list[str]](), ""
    for number, line in enumerate(lines, 1):
        bare = line.rstrip()
        if not bare or bare.lstrip().startswith("#") or bare == "---":
            continue
        item, entry = ITEM.fullmatch(bare), ENTRY.fullmatch(bare)
        if item and last and not entries[last]:
            entries[last] = []
        if item and last and isinstance(values := entries[last], list):
            values.append(_text(item[1]))
        elif entry and entry[1] not in entries:
            last = entry[1]
            entries[last] = _text(entry[2] or "")
        else:
            problem = f"{brief(bare)}: must be a name with a text, or an item of a list"
            raise FileFormatError(path, f"line {number}", problem)
    return entries


def _text(value: str) -> str:
    """A text without its quotes, or without the comment after it."""
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        return value[1:-1]
    return value.partition(" #")[0].strip()
