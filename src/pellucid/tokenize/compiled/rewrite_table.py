"""Normalizers as tables for compiled code: replacements of characters, and Unicode normalization forms."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text.normalize import CHANGES
from pellucid.kernels.text.normalize import JOINS as JOINS_BEFORE
from pellucid.kernels.text.rewrite import ALWAYS, APART, BEGINS, FIRST, FOLLOWS, JOINS, KEPT, NEVER, PICTURE, STRANGE
from pellucid.tokenize.compiled.tables import PairTable
from pellucid.tokenize.patterns.oniguruma import parse
from pellucid.tokenize.patterns.tree import sets
from pellucid.tokenize.stages import normalize
from pellucid.tokenize.stages.character_map import CharacterMap
from pellucid.tokenize.stages.decode import SPACE
from pellucid.tokenize.stages.normalize import Form, Normalizer
from pellucid.tokenize.stages.precompiled_charsmap import PrecompiledNormalizer, SentencePieceNormalizer
from pellucid.tokenize.unicode import CODES, letters, members, singles, small_letters, union

# Tables of a Unicode normalization form, for compiled code (``kernels/text/normalize.py``).
#
# In: the name of a form. Out: the decomposition of every character, and the pairs that compose. The data come from
# Python's ``unicodedata``, limited to the characters of Unicode 9 (``normalize.Normalize``).


class FormTable(Struct, frozen=True, eq=False):
    """The fields of ``text_normalize.NormalizeRecord``; ``growth`` is the maximum number of output bytes per byte."""

    properties: NDArray[np.uint16]
    places: NDArray[np.int32]
    written: NDArray[np.int32]
    pairs: PairTable
    composes: bool
    growth: int


@cache
def form_table(form: Form) -> FormTable:
    """The tables of a form, cached."""
    known, composes = letters(members("text.normalized") or ()), form in ("NFC", "NFKC")
    taken_apart: Form = "NFKD" if form in ("NFKC", "NFKD") else "NFD"
    properties, places, written = np.zeros(CODES, np.uint16), np.zeros(CODES, np.int32), [0]
    composed = {pair: letter for letter in known if (pair := _pair(letter)) is not None}
    seconds, growth = {second for _, second in composed} if composes else set(), 1
    for letter in known:
        code, parts = ord(letter), unicodedata.normalize(taken_apart, letter)
        kind = unicodedata.combining(letter)
        if unicodedata.normalize(form, letter) != letter:
            kind |= CHANGES
        if parts[0] in seconds or (parts != letter and unicodedata.combining(parts[0])):
            kind |= JOINS_BEFORE
        properties[code] = kind
        if parts != letter:
            places[code] = len(written)
            written += [len(parts), *map(ord, parts)]
            growth = max(growth, -(-len(parts.encode()) // len(letter.encode())))
    columns = [[ord(first) for first, _ in composed], [ord(second) for _, second in composed]]
    lefts, rights = (np.array(column, np.int32) for column in columns)
    merged = np.array([ord(letter) for letter in composed.values()], np.int32)
    pairs = PairTable(lefts, rights, merged, np.zeros(len(merged), np.int32))
    return FormTable(properties, places, np.array(written, np.int32), pairs, composes, growth)


def _pair(letter: str) -> tuple[str, str] | None:
    """The two characters that compose to a letter, or None."""
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) < 2 or unicodedata.normalize("NFC", parts) != letter:
        return None
    return unicodedata.normalize("NFC", parts[:-1]), parts[-1]


# A normalizer as tables: the replacement of each character, for compiled code (``kernels/text/rewrite.py``).
#
# In: a normalizer. Out: a sequence of :class:`RewriteTable` with the same effect, or None if the replacements depend on
# more than a table can express. If only a few characters have a replacement that a table cannot express, the table
# marks them as STRANGE, and Python normalizes texts that contain them.

# A character that no normalizer changes, and that does not affect its neighbours.
BETWEEN = "|"
# Maximum length of a replacement in bytes. The length is stored in one byte.
MAX_TARGET_BYTES = 255


class Rules(Struct, frozen=True):
    """Rules that replace several characters.

    ``which`` selects the rule: "longest" for the longest match, "clusters" for the rule of a whole grapheme cluster.
    ``replaced`` has the characters of each rule, ``places`` the index of each target in ``written``, and ``flags``
    (0x110000,) the flags of all characters.
    """

    which: str
    replaced: Sequence[str]
    places: NDArray[np.int32]
    flags: NDArray[np.uint8]


class RewriteTable(Struct, frozen=True):
    """The fields of ``text_rewrite.RewriteRecord``; ``growth`` is the maximum number of output bytes per byte."""

    targets: NDArray[np.int32]
    written: NDArray[np.uint8]
    growth: int
    rules: Rules | None = None
    collapse: bool = False
    trim: bool = False
    prefix: bytes = b""
    when: int = NEVER
    unless_there: bool = False
    plain: bool = False


class _Step(Struct, frozen=True):
    """A step before it becomes a table: a map from characters to replacements (None: STRANGE), and settings."""

    changes: dict[int, str | None] = field(default_factory=dict)
    rules: str = ""  # "longest" or "clusters"
    longer: dict[str, str] = field(default_factory=dict)
    collapse: bool = False
    trim: bool = False
    prefix: str = ""
    when: int = NEVER
    unless_there: bool = False

    @property
    def plain(self) -> bool:
        """True if the step only replaces single characters."""
        return replace(self, changes={}) == _Step()


def rewrite_tables(stages: Iterable[tuple[Normalizer, bool]]) -> list[RewriteTable | Form] | None:
    """The tables of normalizers, or None if a normalizer has no tables.

    ``stages`` has each normalizer with a bool: True if it applies only to the start of a text. A normalization form is
    returned unchanged, because its replacements depend on neighbouring characters (`form_table`).
    """
    steps: list[_Step | Form] = []
    for stage, only_first in stages:
        more = _steps(stage, only_first)
        if more is None:
            return None
        for step in more:
            _append(steps, step)
    return [_table(step) if isinstance(step, _Step) else step for step in steps]


def _append(steps: list[_Step | Form], step: _Step | Form) -> None:
    """Append a step, combined with the previous step if the result is the same."""
    before = steps[-1] if steps and isinstance(steps[-1], _Step) else None
    if not isinstance(step, _Step):
        steps.append(step)
        return
    settled = before is not None and (before.collapse or before.trim or before.prefix or before.longer)
    if before is not None and step.plain and not settled:
        steps[-1] = replace(before, changes=_composition(before.changes, step.changes))
    elif before is not None and before.plain and not step.rules:
        # A plain map is merged into the next map.
        steps[-1] = replace(step, changes=_composition(before.changes, step.changes))
    elif (
        before is not None
        and step == _Step(prefix=step.prefix, when=step.when, unless_there=step.unless_there)
        and (not before.prefix)
    ):
        steps[-1] = replace(before, prefix=step.prefix, when=step.when, unless_there=step.unless_there)
    elif before is not None and step == _Step(collapse=True) and not (before.trim or before.prefix):
        steps[-1] = replace(before, collapse=True)
    else:
        steps.append(step)


def _composition(first: dict[int, str | None], then: dict[int, str | None]) -> dict[int, str | None]:
    """The composition of two maps."""

    def of(text: str | None) -> str | None:
        if text is None or len(text) > MAX_TARGET_BYTES:
            return None  # STRANGE: Python normalizes the text, within limits
        parts = [then.get(ord(letter), letter) for letter in text]
        return None if None in parts else "".join(part or "" for part in parts)

    return then | {code: of(target) for code, target in first.items()}


def _steps(stage: Normalizer, only_first: bool = False) -> Sequence[_Step | Form] | None:
    if isinstance(stage, normalize.Sequential):
        parts = [_steps(part, only_first) for part in stage.stages]
        return None if None in parts else [step for part in parts for step in part or ()]
    if isinstance(stage, normalize.Prepend):
        when = FIRST if only_first else ALWAYS
        return [_Step(prefix=stage.prefix, when=when, unless_there=stage.unless_there)]
    if only_first:
        return None
    if isinstance(stage, normalize.Normalize):
        return [stage.form]
    if isinstance(stage, normalize.Bert):
        return [_Step(_bert_changes(stage))]
    if len(stage.rewrites) == 1 and isinstance(only := stage.rewrites[0], CharacterMap):
        return [_Step(dict(only.targets))]
    if isinstance(stage, normalize.Replace):
        if stage == normalize.Replace(r"\s+", " ", is_pattern=True):
            codes = (code for low, high in sets(parse(r"\s"))[0] for code in range(low, high + 1))
            return [_Step(dict.fromkeys(codes, " "), collapse=True)]
        return [_Step(collapse=True)] if stage == normalize.Replace(" {2,}", " ", is_pattern=True) else None
    if isinstance(stage, PrecompiledNormalizer):
        return [_precompiled(stage)]
    if isinstance(stage, SentencePieceNormalizer):
        return _sentencepiece(stage)
    return None


def _bert_changes(stage: normalize.Bert) -> dict[int, str | None]:
    """The replacement of each character that BERT's clean-up changes, normalized by itself.

    A combining mark that the clean-up keeps is STRANGE, because normalization reorders it with the marks before it.
    The function normalizes all characters in one call, separated by a character that does not change.
    """
    names = ("text.normalized", "bert.dropped", "bert.marks", "White_Space")
    touched = [singles(small_letters()), normalize.IDEOGRAPHS, *(members(name) or () for name in names)]
    changed = letters(union(touched)).replace(BETWEEN, "")
    targets = stage(BETWEEN.join(changed)).split(BETWEEN)
    changes: dict[int, str | None] = {}
    for letter, target in zip(changed, targets, strict=True):
        strange = any(map(unicodedata.combining, target))
        if strange or target != letter:
            changes[ord(letter)] = None if strange else target
    return changes


def _precompiled(stage: PrecompiledNormalizer) -> _Step:
    changes, longer = _split_rules(stage.map.rules)
    # These characters form a cluster with the characters after them. Only Python handles these clusters.
    changes |= dict.fromkeys(map(ord, letters(members("text.prepends") or ())))
    jamo = letters(union(members(f"GCB={kind}") or () for kind in ("L", "V", "T", "LV", "LVT")))
    changes |= dict.fromkeys(code for code in map(ord, jamo) if code in changes)
    return _Step(changes, "clusters", longer)


def _split_rules(rules: Mapping[str, str]) -> tuple[dict[int, str | None], dict[str, str]]:
    """The rules that replace one character, and the rules that replace several."""
    single: dict[int, str | None] = {ord(key): new for key, new in rules.items() if len(key) == 1}
    return single, {key: new for key, new in rules.items() if len(key) > 1}


def _sentencepiece(stage: SentencePieceNormalizer) -> list[_Step] | None:
    rules = stage.rules.rules
    if stage.suffix or (stage.remove_extra and any("  " in new for new in rules.values())):
        return None
    changes, longer = _split_rules(rules)
    if stage.remove_extra and stage.escape:
        # At the end of a text ``▁`` acts like a space. At all other positions it does not.
        changes.setdefault(ord(SPACE), None)
        if any(SPACE in new for new in rules.values()):
            return None
    if stage.dummy_prefix and not stage.remove_extra and "" in rules.values():
        return None  # the prefix is inserted even if the rules leave the text empty
    first = _Step(changes, "longest", longer, collapse=stage.remove_extra, trim=stage.remove_extra)
    space = SPACE if stage.escape else " "
    when = ALWAYS if stage.dummy_prefix else NEVER
    return [first, _Step({ord(" "): space}, prefix=space if stage.dummy_prefix else "", when=when)]


def _flags(step: _Step) -> NDArray[np.uint8]:
    flags = np.zeros(CODES, np.uint8)
    flags[[ord(key[0]) for key in step.longer]] |= BEGINS
    flags[[ord(key[1]) for key in step.longer]] |= FOLLOWS
    flags[[10, 13]] |= APART
    for name, flag in (("text.joins", JOINS), ("GCB=Control", APART), ("Extended_Pictographic", PICTURE)):
        for low, high in members(name) or ():
            flags[low : high + 1] |= flag
    return flags


def _table(step: _Step) -> RewriteTable:
    targets = np.full(CODES, KEPT, np.int32)
    written, places = bytearray(1), dict[str, int]()  # place 0 is KEPT
    growth = 1

    def place(replaced: str, target: str | None) -> int:
        nonlocal growth, written
        data = b"" if target is None else target.encode()
        if target is None or len(data) > MAX_TARGET_BYTES:
            return STRANGE
        if target not in places:
            places[target] = len(written)
            written += bytes([len(data)]) + data
        growth = max(growth, -(-len(data) // len(replaced.encode("utf-8", "surrogatepass"))))
        return places[target]

    for code, target in step.changes.items():
        targets[code] = place(chr(code), target)
    rules = None
    if step.rules:
        longer = {key: place(key, new) for key, new in step.longer.items()}
        # Python handles a rule whose target is too long, wherever its first character occurs.
        targets[[ord(key[0]) for key, where in longer.items() if where == STRANGE]] = STRANGE
        rules = Rules(step.rules, list(longer), np.array(list(longer.values()), np.int32), _flags(step))
    return RewriteTable(
        targets,
        np.frombuffer(bytes(written) + bytes(text_pieces.PADDING), np.uint8),
        growth,
        rules,
        step.collapse,
        step.trim,
        step.prefix.encode(),
        step.when,
        step.unless_there,
        _plain(step),
    )


def _plain(step: _Step) -> bool:
    """True if the step leaves texts of "!" to "~" unchanged."""
    longer = any(key[:2].isascii() for key in step.longer)
    return not longer and not any(0x20 < code < 0x7F for code in step.changes)
