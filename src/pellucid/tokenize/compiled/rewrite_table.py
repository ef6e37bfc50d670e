"""Normalizers as compiled stages: replacements of characters, and Unicode normalization forms, as tables for kernels.

In: the normalizers of a tokenizer. Out: stages with the same effect on batches of texts, or None if the replacements
depend on more than a table can express. If only a few characters have such a replacement, the table marks them as
STRANGE, and Python normalizes texts that contain them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.text import normalize as text_normalize
from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text import rewrite as text_rewrite
from pellucid.kernels.text.rewrite import ALWAYS, APART, BEGINS, FIRST, FOLLOWS, JOINS, KEPT, NEVER, PICTURE, STRANGE
from pellucid.runtime.executor import Call
from pellucid.tokenize.compiled.tables import PairTable, PieceTree
from pellucid.tokenize.compiled.workspace import TextBatch, Workspace
from pellucid.tokenize.patterns.oniguruma import parse
from pellucid.tokenize.patterns.tree import sets
from pellucid.tokenize.stages import normalize
from pellucid.tokenize.stages.aligned import GROWTH_EXTRA, CharacterMap
from pellucid.tokenize.stages.decode import SPACE
from pellucid.tokenize.stages.normalize import Form, Normalizer
from pellucid.tokenize.stages.precompiled_charsmap import PrecompiledNormalizer, SentencePieceNormalizer
from pellucid.tokenize.unicode import CODES, letters, members, singles, small_letters, union

# Maximum growth of a span in a compiled stage: output bytes for each input byte. If a span grows more, Python runs the
# stage.
MAX_GROWTH = 4


class RewriteStage:
    """Changes texts with ``_kernel``.

    A byte becomes at most ``_growth`` bytes, and each span gets at most ``_prefix_length`` more. The stage gives up if
    a span may exceed the limit of ``aligned.check_growth``.
    """

    _kernel: Call
    _growth: int
    _prefix_length = 0

    def __call__(self, batch: TextBatch) -> bool:
        workspace, side, text_side = batch.workspace, 1 - batch.side, 1 - batch.text_side
        length = self._growth * batch.length + (self._prefix_length + 1) * batch.piece_count
        if length >= text_pieces.PART or self._prefix_length > GROWTH_EXTRA:
            return False
        text = workspace.array("text", text_side, length + text_pieces.PADDING, np.uint8)
        pieces = workspace.array("pieces", side, 2 * batch.piece_count, np.int32)
        ends = workspace.array("ends", text_side, batch.text_count, np.int32)
        self._kernel(
            text=batch.text.address,
            pieces=batch.pieces.address,
            count=batch.piece_count,
            ends=batch.ends.address,
            texts=batch.text_count,
            out=text.address,
            out_pieces=pieces.address,
            out_ends=ends.address,
            status=workspace.result.address,
            **self._fields(workspace),
        )
        if int(workspace.result.array[0]) != text_rewrite.DONE:
            return False
        before = batch.sizes()
        batch.text, batch.pieces, batch.ends = text, pieces, ends
        batch.side, batch.text_side = side, text_side
        batch.length = int(ends.array[batch.text_count - 1])
        return not np.any(batch.sizes() > MAX_GROWTH * before + GROWTH_EXTRA)

    def _fields(self, workspace: Workspace) -> dict[str, int]:
        """Further fields for each call of the kernel."""
        return {}


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
    """The tables of a form, from ``unicodedata``, limited to the characters of Unicode 9 (``normalize.Normalize``)."""
    known, composes = letters(members("text.normalized") or ()), form in ("NFC", "NFKC")
    taken_apart: Form = "NFKD" if form in ("NFKC", "NFKD") else "NFD"
    properties, places, written = np.zeros(CODES, np.uint16), np.zeros(CODES, np.int32), [0]
    composed = {pair: letter for letter in known if (pair := _pair(letter)) is not None}
    seconds, growth = {second for _, second in composed} if composes else set(), 1
    for letter in known:
        code, parts = ord(letter), unicodedata.normalize(taken_apart, letter)
        kind = unicodedata.combining(letter)
        if unicodedata.normalize(form, letter) != letter:
            kind |= text_normalize.CHANGES
        if parts[0] in seconds or (parts != letter and unicodedata.combining(parts[0])):
            kind |= text_normalize.JOINS
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
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) < 2 or unicodedata.normalize("NFC", parts) != letter:
        return None
    return unicodedata.normalize("NFC", parts[:-1]), parts[-1]


class NormalizeStage(RewriteStage):
    """Converts texts to a Unicode normalization form."""

    def __init__(self, table: FormTable) -> None:
        self._growth = table.growth
        self._kernel = Call(
            KernelKey("text.normalize"),
            text_normalize.NormalizeRecord,
            properties=table.properties,
            places=table.places,
            written=table.written,
            composes=int(table.composes),
            pairs=table.pairs.slots,
            pairs_mask=table.pairs.mask,
        )

    def _fields(self, workspace: Workspace) -> dict[str, int]:
        return {"scratch": workspace.array("parts", 0, text_normalize.MAX_PARTS, np.int32).address}


# A character that no normalizer changes, and that does not affect its neighbours.
BETWEEN = "|"
# Maximum length of a replacement in bytes. The length is stored in one byte.
MAX_TARGET_BYTES = 255


class Replacements(Struct, frozen=True):
    """Replacements that a table can express.

    ``changes`` maps characters to their replacements (None: STRANGE). ``longer`` has rules that replace several
    characters. ``rules`` selects one of them: "longest" the longest match, "clusters" the rule of a whole grapheme
    cluster, "none" if there are no rules. The other fields are fields of ``text_rewrite.RewriteRecord``.
    """

    changes: dict[int, str | None] = field(default_factory=dict)
    rules: str = "none"
    longer: dict[str, str] = field(default_factory=dict)
    collapse: bool = False
    trim: bool = False
    prefix: str = ""
    when: int = NEVER
    unless_there: bool = False

    @property
    def plain(self) -> bool:
        """True if only single characters are replaced."""
        return replace(self, changes={}) == Replacements()

    def then(self, step: Replacements) -> Replacements | None:
        """These replacements and then ``step`` in one table; None if no table expresses both."""
        if step.plain and not (self.collapse or self.trim or self.prefix or self.longer):
            return replace(self, changes=self._composition(step.changes))
        if self.plain and step.rules == "none":
            return replace(step, changes=self._composition(step.changes))
        prefix: dict[str, Any] = {"prefix": step.prefix, "when": step.when, "unless_there": step.unless_there}
        if step == Replacements(**prefix) and not self.prefix:
            return replace(self, **prefix)
        if step == Replacements(collapse=True) and not (self.trim or self.prefix):
            return replace(self, collapse=True)
        return None

    def _composition(self, then: dict[int, str | None]) -> dict[int, str | None]:
        def of(text: str | None) -> str | None:
            if text is None or len(text) > MAX_TARGET_BYTES:
                return None  # STRANGE: Python normalizes the text, within limits
            parts = [then.get(ord(letter), letter) for letter in text]
            return None if None in parts else "".join(part or "" for part in parts)

        return then | {code: of(target) for code, target in self.changes.items()}


class ReplaceStage(RewriteStage):
    """Replaces characters."""

    def __init__(self, step: Replacements) -> None:
        prefix = step.prefix.encode()
        self._growth, self._prefix_length = 1, len(prefix)
        self._written, self._places = bytearray(1), dict[str, int]()  # place 0 is KEPT
        targets, fields = np.full(CODES, KEPT, np.int32), dict[str, Any]()
        for code, target in step.changes.items():
            targets[code] = self._place(chr(code), target)
        if step.rules != "none":
            longer = {key: self._place(key, new) for key, new in step.longer.items()}
            # Python handles a rule whose target is too long, wherever its first character occurs.
            targets[[ord(key[0]) for key, where in longer.items() if where == STRANGE]] = STRANGE
            tree = PieceTree.of([key.encode() for key in longer])
            ends = np.where(tree.ids >= 0, np.array([*longer.values(), 0], np.int32)[tree.ids], -1)
            fields = {"flags": _flags(step.longer), "slots": tree.slots, "rules": ends.astype(np.int32)}
        self._kernel = Call(
            KernelKey("text.rewrite", rules=step.rules),
            text_rewrite.RewriteRecord,
            **fields,
            targets=targets,
            written=np.frombuffer(bytes(self._written) + bytes(text_pieces.PADDING), np.uint8),
            collapse=int(step.collapse),
            trim=int(step.trim),
            prefix=np.frombuffer(prefix or b"\0", np.uint8),
            prefix_length=len(prefix),
            when=step.when,
            unless_there=int(step.unless_there),
            plain=int(_keeps_ascii(step)),
        )

    def _place(self, replaced: str, target: str | None) -> int:
        """The place of a target among the written targets; STRANGE if it has none."""
        data = b"" if target is None else target.encode()
        if target is None or len(data) > MAX_TARGET_BYTES:
            return STRANGE
        if target not in self._places:
            self._places[target] = len(self._written)
            self._written += bytes([len(data)]) + data
        self._growth = max(self._growth, -(-len(data) // len(replaced.encode("utf-8", "surrogatepass"))))
        return self._places[target]


def _flags(longer: Mapping[str, str]) -> NDArray[np.uint8]:
    flags = np.zeros(CODES, np.uint8)
    flags[[ord(key[0]) for key in longer]] |= BEGINS
    flags[[ord(key[1]) for key in longer]] |= FOLLOWS
    flags[[10, 13]] |= APART
    for name, flag in (("text.joins", JOINS), ("GCB=Control", APART), ("Extended_Pictographic", PICTURE)):
        for low, high in members(name) or ():
            flags[low : high + 1] |= flag
    return flags


def _keeps_ascii(step: Replacements) -> bool:
    """True if the step leaves texts of "!" to "~" unchanged."""
    longer = any(key[:2].isascii() for key in step.longer)
    return not longer and not any(0x20 < code < 0x7F for code in step.changes)


def rewrite_stages(normalizers: Iterable[tuple[Normalizer, bool]]) -> list[RewriteStage] | None:
    """The compiled stages of normalizers, or None if a normalizer has no table.

    Each normalizer has a bool: True if it applies only to the start of a text. Adjacent replacements become one table
    if the result is the same.
    """
    steps: list[Replacements | Form] = []
    for normalizer, only_first in normalizers:
        more = _steps(normalizer, only_first)
        if more is None:
            return None
        for step in more:
            before = steps.pop() if steps else None
            both = before.then(step) if isinstance(before, Replacements) and isinstance(step, Replacements) else None
            steps += [both] if both else [step] if before is None else [before, step]
    return [
        ReplaceStage(step) if isinstance(step, Replacements) else NormalizeStage(form_table(step)) for step in steps
    ]


Steps = Sequence[Replacements | Form] | None
"""A form stands for itself, because its replacements depend on neighbouring characters. None: no table."""


def _steps(stage: Normalizer, only_first: bool) -> Steps:
    if isinstance(stage, normalize.Sequential):
        parts = [_steps(part, only_first) for part in stage.stages]
        return None if None in parts else [step for part in parts for step in part or ()]
    if isinstance(stage, normalize.Prepend):
        when = FIRST if only_first else ALWAYS
        return [Replacements(prefix=stage.prefix, when=when, unless_there=stage.unless_there)]
    if only_first:
        return None
    steps = _TABLES[type(stage)](stage) if type(stage) in _TABLES else None
    if steps is None and len(stage.rewrites) == 1 and isinstance(only := stage.rewrites[0], CharacterMap):
        return [Replacements(dict(only.targets))]
    return steps


def _replace(stage: normalize.Replace) -> Steps:
    if stage == normalize.Replace(r"\s+", " ", is_pattern=True):
        codes = (code for low, high in sets(parse(r"\s"))[0] for code in range(low, high + 1))
        return [Replacements(dict.fromkeys(codes, " "), collapse=True)]
    return [Replacements(collapse=True)] if stage == normalize.Replace(" {2,}", " ", is_pattern=True) else None


def _bert(stage: normalize.Bert) -> Steps:
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
    return [Replacements(changes)]


def _precompiled(stage: PrecompiledNormalizer) -> Steps:
    changes, longer = _split_rules(stage.map.rules)
    # These characters form a cluster with the characters after them. Only Python handles these clusters.
    changes |= dict.fromkeys(map(ord, letters(members("text.prepends") or ())))
    jamo = letters(union(members(f"GCB={kind}") or () for kind in ("L", "V", "T", "LV", "LVT")))
    changes |= dict.fromkeys(code for code in map(ord, jamo) if code in changes)
    return [Replacements(changes, "clusters", longer)]


def _split_rules(rules: Mapping[str, str]) -> tuple[dict[int, str | None], dict[str, str]]:
    """The rules that replace one character, and the rules that replace several."""
    single: dict[int, str | None] = {ord(key): new for key, new in rules.items() if len(key) == 1}
    return single, {key: new for key, new in rules.items() if len(key) > 1}


def _sentencepiece(stage: SentencePieceNormalizer) -> Steps:
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
    first = Replacements(changes, "longest", longer, collapse=stage.remove_extra, trim=stage.remove_extra)
    space = SPACE if stage.escape else " "
    when = ALWAYS if stage.dummy_prefix else NEVER
    return [first, Replacements({ord(" "): space}, prefix=space if stage.dummy_prefix else "", when=when)]


_TABLES: Mapping[type[Normalizer], Callable[[Any], Steps]] = {
    normalize.Normalize: lambda stage: [stage.form],
    normalize.Bert: _bert,
    normalize.Replace: _replace,
    PrecompiledNormalizer: _precompiled,
    SentencePieceNormalizer: _sentencepiece,
}
"""The steps of each kind of normalizer that is more than a map of characters."""
