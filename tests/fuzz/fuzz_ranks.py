"""Small random vocabularies of ranks: the folder or the name determines the pattern, else the file is refused.

If tiktoken is installed, its ids must be equal.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

from pellucid.errors import PellucidError, UnsupportedModel
from pellucid.tokenize import load_tokenizer

try:
    import tiktoken
except ImportError:
    tiktoken = None

SECONDS, MEMORY, SMALL, LONG = 5.0, 8 << 30, 100, 5_000
LETTERS = [
    "a",
    "B",
    "c",
    "1",
    "12",
    "1234",
    " ",
    "  ",
    "\n",
    "\r\n",
    "'s",
    "'LL",
    "!",
    "?/",
    "é",
    "日本",
    "\u0301",
    "ß",
]
SIZES = 20  # pieces of more than one byte, at most

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASES = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "qwen": _WORDS,
    "llama3": _WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1),
    "llama4": (
        rf"{_CASES}|{_CASES.replace(']*[', ']+[').replace(']+(', ']*(')}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Patterns of Qwen's and Meta's ``tokenizer.py``, from the programs that define these vocabularies."""
STATED: dict[str, tuple[str, dict[str, str]]] = {
    "qwen": ("tokenizer_config.json", {"tokenizer_class": "QWenTokenizer"}),
    "llama3": ("config.json", {"model_type": "llama"}),
    "llama4": ("config.json", {"model_type": "llama4"}),
}


def case(random: Random, folder: Path) -> str | None:
    for path in folder.iterdir():
        path.unlink()
    ranks = {piece: rank for rank, piece in enumerate(_pieces(random))}
    stated = random.choice([None, *STATED])
    named = random.choice([None, None, *PATTERNS])
    name = f"{named or random.choice(['tokenizer', 'vocab'])}.{random.choice(['model', 'tiktoken'])}"
    lines = [base64.b64encode(piece) + b" %d" % rank for piece, rank in ranks.items()]
    (folder / name).write_bytes(random.choice([b"\n", b"\r\n"]).join([*lines, b""]))
    if stated is not None:
        sidecar, content = STATED[stated]
        (folder / sidecar).write_text(json.dumps(content))
    expected = stated or named
    try:
        ours = load_tokenizer(random.choice([folder, folder / name]))
    except UnsupportedModel as refused:
        return None if expected is None else f"refused: {refused}"
    except PellucidError as refused:
        return f"an error: {refused}"
    if expected is None:
        return f"{name} is read, and nothing says with which pattern"
    theirs = None if tiktoken is None else _theirs(PATTERNS[expected], ranks)
    for _ in range(5):
        text = "".join(random.choice(LETTERS) for _ in range(random.randint(0, 12)))
        ids = ours.encode(text)
        if theirs is not None and ids != theirs.encode_ordinary(text):
            return f"{name}, stated {stated}: {ids}, not {theirs.encode_ordinary(text)} of {text!r}"
        if ours.decode(ids) != text:
            return f"{ours.decode(ids)!r} is decoded of {text!r}"
    return None


def _pieces(random: Random) -> list[bytes]:
    """All bytes, and pieces that join two pieces."""
    pieces = [bytes([byte]) for byte in range(256)]
    common = [letter.encode()[at : at + 1] for letter in LETTERS for at in range(len(letter.encode()))]
    for _ in range(random.randint(0, SIZES)):
        made = random.choice([*common, *pieces[256:]]) + random.choice([*common, *pieces[256:]])
        pieces += [] if made in pieces else [made]
    return pieces


def _theirs(pattern: str, ranks: dict[bytes, int]) -> Any:
    return tiktoken.Encoding("fuzz", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
