"""Files ``tokenizer.json`` with other stages, other values or damage: refused in one line, or encoded correctly.

If Hugging Face ``tokenizers`` is installed and accepts the file, its ids and offsets must be equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from pellucid.errors import InvalidRequest, PellucidError
from pellucid.tokenize import load_tokenizer
from pellucid.tokenize.compiled_encoder import compiled_encoder
from pellucid.tokenize.kinds.byte_bpe import ByteBPE
from pellucid.tokenize.patterns.matcher import matcher
from pellucid.tokenize.stages.normalize import Prepend, Replace, Sequential
from pellucid.tokenize.tokenizer import Tokenizer

os.environ["RUST_BACKTRACE"] = "0"
try:
    import tokenizers
except ImportError:
    tokenizers = None

SECONDS, MEMORY, SMALL, LONG = 5.0, 8 << 30, 300, 50_000
GOLDENS = Path(__file__).parents[1] / "goldens" / "tokenize"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/tokenizer.json"))
MAX_BYTES = 1_000_000  # limit for a damaged file
MAX_ENTRIES = 5  # entries of a long list or object that may be damaged
TEXTS, COMPILED = 3, 0.03  # texts per file; share of the texts that compiled code encodes too

PATTERNS: list[Any] = [
    *({"String": text} for text in (" ", "a", "ab", "", "é", "\n", "▁", ".", "  ")),
    *({"Regex": text} for text in ("a*", r"\s+", r"\b", "(?=a)", "$", "", r"\p{L}+", "(?i:S)", "[^a-z]", " {2,}")),
    {"Regex": "(a|aa)+$"},
    {"Regex": r"\p{N}{1,3}|\w+?(?=e)"},
]
NORMALIZERS: list[Any] = [
    *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")),
    *({"type": "Strip", "strip_left": left, "strip_right": right} for left in (0, 1) for right in (True, False)),
    *({"type": "Prepend", "prepend": text} for text in ("▁", "ab", "", "x" * 2000)),
    *(
        {"type": "Replace", "pattern": pattern, "content": content}
        for pattern in PATTERNS
        for content in ("", "a", "ab", "▁", "é" * 40)
    ),
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
]
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
PRE_TOKENIZERS: list[Any] = [
    *({"type": name} for name in ("BertPreTokenizer", "WhitespaceSplit", "Whitespace")),
    *(
        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
        for pattern in PATTERNS
        for behavior in BEHAVIORS
        for invert in (False, True)
    ),
    *({"type": "Digits", "individual_digits": each} for each in (False, True)),
    *({"type": "Punctuation", "behavior": behavior} for behavior in BEHAVIORS),
    *(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
        for scheme in ("always", "first", "never")
        for split in (False, True)
    ),
    {"type": "CharDelimiterSplit", "delimiter": "e"},
    {"type": "FixedLength", "length": 3},
]
WRONG: list[Any] = [
    *(None, -1, 0, 1, 10**30, 1.5, True, "x", "", [], {}, [[]], {"type": "Sequence"}, "\ud800", "a" * 3000, 1 << 31),
    *({"Regex": "(" * 200}, {"Regex": "a{100001}"}, {"Fixed": 1 << 40}, [1] * 50),
]
LETTERS = "aaeeiosdnt  \n\té漢字かe\u0301ﬁⅷ😀.,!?'12٣ABSß▁\u00a0\u200d\x00"


@cache
def _file(name: str) -> Any:
    return json.loads((GOLDENS / name / "tokenizer.json").read_text(encoding="utf-8"))


def prepare(folder: Path) -> None:
    """Compile the kernels, which takes longer than the limit of a case."""
    for name in NAMES:
        compiled = compiled_encoder(load_tokenizer(GOLDENS / name / "tokenizer.json"))
        if compiled is not None:
            compiled.lists(["a"], True)


def case(random: Random, folder: Path) -> str | None:
    spec = deepcopy(_file(random.choice(NAMES)))
    damaged = random.random() < 0.5
    if random.random() < 0.8:
        _restaged(random, spec)
    text = json.dumps(_damaged(random, spec) if damaged else spec)
    if random.random() < 0.05:
        at = random.randrange(len(text))
        text = text[:at] + random.choice(["", "}", "9" * 5000, '"', "[" * 2000]) + text[at + random.randrange(3) :]
    if len(text) > MAX_BYTES:
        return None
    path = folder / "tokenizer.json"
    path.write_text(text)
    try:
        ours = load_tokenizer(path)
    except PellucidError as refused:
        return _unfit(refused)
    theirs = _theirs(text)
    for _ in range(TEXTS):
        some = "".join(random.choice(LETTERS) for _ in range(random.randint(0, 24)))
        if problem := _compared(ours, theirs, some, random.random() < COMPILED):
            return f"{problem} of {some!r}"
    return None


def _restaged(random: Random, spec: Any) -> None:
    """Replace or extend the normalizers, and put pre-tokenizers before the existing ones."""
    chosen = [random.choice(NORMALIZERS) for _ in range(random.choice([0, 0, 1, 1, 2, 3, 10]))]
    if chosen:
        chosen += [spec["normalizer"]] if spec["normalizer"] and random.random() < 0.5 else []
        spec["normalizer"] = {"type": "Sequence", "normalizers": chosen}
    chosen = [random.choice(PRE_TOKENIZERS) for _ in range(random.choice([0, 0, 1, 2]))]
    if chosen:
        chosen += [spec["pre_tokenizer"]] if spec["pre_tokenizer"] else []
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": chosen}


def _damaged(random: Random, spec: Any) -> Any:
    """Change one to three values: replace, remove, rename or repeat them."""
    for _ in range(random.choice([1, 1, 2, 3])):
        found = list(_places(spec))
        if found:
            spec = _replaced(random, spec, random.choice(found), WRONG)
    return spec


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values inside a value; long lists and objects contribute only their first few entries."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, (key, inner) in enumerate(inside):
        if at < MAX_ENTRIES or len(before) < 1:
            yield (*before, key)
            yield from _places(inner, (*before, key))


def _replaced(random: Random, value: Any, place: tuple[Any, ...], others: list[Any]) -> Any:
    """Change the value at a path in place: replace, remove, rename or repeat it."""
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    key, kind = place[-1], random.random()
    if kind < 0.15:
        del owner[key]
    elif kind < 0.25 and isinstance(owner, list):
        owner[key:key] = [owner[key]] * random.choice([1, 2, 200, 3000])
    elif kind < 0.3 and isinstance(owner[key], list):
        owner[key] = owner[key] * random.choice([0, 2, 3])
    elif kind < 0.35 and isinstance(owner, dict):
        owner[f"{key}{random.choice('x_ ')}"] = owner.pop(key)
    else:
        owner[key] = deepcopy(random.choice(others))
    return value


def _theirs(text: str) -> Any:
    """The tokenizer of ``tokenizers``, or None if it is not installed or refuses the file."""
    if tokenizers is None:
        return None
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as refused:  # a panic is not an Exception
        if isinstance(refused, KeyboardInterrupt):
            raise
        return None


def _compared(ours: Tokenizer, theirs: Any, text: str, compiled: bool) -> str | None:
    try:
        ids = ours.encode(text, parse_special=True)
        encoding = ours.encode_with_offsets(text, parse_special=True)
        ours.decode(ids)
        if compiled and (run := compiled_encoder(ours)) is not None:
            found = run.lists([text], True)[0]
            if ours.post_processor.ids(found) != ids:
                return f"{found} by compiled code, {ids} in Python"
    except InvalidRequest as refused:
        return _unfit(refused)
    if encoding.ids != ids:
        return f"ids {ids}, with offsets {encoding.ids}"
    if theirs is None or _goes_wrong(ours):
        return None
    try:
        wanted = theirs.encode(text)
    except BaseException as refused:
        if isinstance(refused, KeyboardInterrupt):
            raise
        return None
    if wanted.ids != ids:
        return f"ids {ids}, not {wanted.ids}"
    return None if encoding.offsets == wanted.offsets else f"offsets {encoding.offsets}, not {wanted.offsets}"


def _goes_wrong(ours: Tokenizer) -> bool:
    """True if ``tokenizers`` 0.23 has a known bug: an empty match before bytes inserts its text twice, or panics."""
    normalizer = ours.normalizer
    stages = normalizer.stages if isinstance(normalizer, Sequential) else [normalizer]
    inserts = any(
        (isinstance(stage, Replace) and stage.new and _may_be_empty(stage))
        or (isinstance(stage, Prepend) and not stage.prefix)
        for stage in stages
    )
    return inserts and isinstance(ours.model, ByteBPE)


def _may_be_empty(stage: Replace) -> bool:
    return matcher(stage.old).may_be_empty if stage.is_pattern else not stage.old


def _unfit(error: PellucidError) -> str | None:
    message = str(error)
    return f"a message {message[:50]!r}" if "\n" in message or not message or len(message) > 600 else None
