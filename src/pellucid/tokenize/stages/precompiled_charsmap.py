"""The character map that SentencePiece compiles into a model, and the normalizers that apply it.

The map is a set of rules. A rule replaces a few characters by other characters, its target. The map is stored as a
double-array trie (darts-clone) and a text of the targets: ``<bytes of trie: u32><trie: u32 …><targets, each followed by
a NUL>`` (google/sentencepiece, ``normalizer.cc``). SentencePiece applies the longest rule at each position. Hugging
Face ``tokenizers`` applies rules to grapheme clusters (``normalizers/precompiled.rs``). Both ways are implemented, so
the ids of a file equal the ids of the program for which the file was made.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.errors import FileFormatError, brief
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.patterns.matcher import compiled
from pellucid.tokenize.stages.aligned import AlignedText, check_growth, placed
from pellucid.tokenize.stages.decode import SPACE
from pellucid.tokenize.stages.normalize import Normalizer, Rewrite, matches
from pellucid.tokenize.unicode import bracket, letters, members, singles

if TYPE_CHECKING:
    from regex import Pattern  # type: ignore[import-untyped]

MAX_RULE_BYTES, MAX_RULES = 64, 1 << 18
"""Maximum bytes that a rule replaces, and maximum number of rules. The number of rules needs a limit, because a small
trie can have very many rules that share prefixes."""


class CharsMap:
    """The rules of a map: replaced text → target."""

    def __init__(self, rules: dict[str, str]) -> None:
        self.rules = rules

    def __repr__(self) -> str:
        return f"CharsMap({len(self.rules):,} rules)"

    @classmethod
    def from_base64(cls, text: str, path: Path, field: str) -> CharsMap:
        """Read the map in a field of ``tokenizer.json``. Raises :class:`FileFormatError`."""
        try:
            blob = base64.b64decode(text, validate=True)
        except binascii.Error as bad:
            raise FileFormatError(path, field, f"not base64: {bad}") from None
        return cls.from_bytes(blob, path, field)

    @classmethod
    def from_bytes(cls, blob: bytes, path: Path, field: str) -> CharsMap:
        """Read the map, with all its rules, from the bytes in a model. Raises :class:`FileFormatError`."""
        place = parsed_cache.cache_name(blob) if len(blob) >= parsed_cache.WORTH_CACHING else None
        if place is not None and (known := parsed_cache.read(place)) is not None:
            old, new = (parsed_cache.text_of(known[name]).split("\0") for name in ("old", "new"))
            return cls(dict(zip(old, new)))
        read = cls._read(blob, path, field)
        if place is not None and read.rules:  # no rule can contain a NUL
            parts = {"old": "\0".join(read.rules), "new": "\0".join(read.rules.values())}
            parsed_cache.write(place, {name: parsed_cache.array_of(text) for name, text in parts.items()})
        return read

    @classmethod
    def _read(cls, blob: bytes, path: Path, field: str) -> CharsMap:
        import numpy as np

        def wrong(problem: str) -> FileFormatError:
            return FileFormatError(path, field, problem)

        if not blob:
            return cls({})
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 8 or size % 4 or not 4 <= size <= len(blob) - 4:
            raise wrong(f"a trie of {size:,} bytes in a map of {len(blob):,}")
        units = np.frombuffer(blob, np.uint32, size // 4, 4).astype(np.int64)
        targets = blob[4 + size :]
        offsets = units >> 10 << ((units >> 6) & 8)
        # A unit with label c at index p belongs to the node whose children begin at p ^ c.
        labels = units & 0x800000FF
        children = np.flatnonzero((labels > 0) & (labels < 256))
        parents = children ^ labels[children]
        order = np.argsort(parents, kind="stable")
        children, parents = children[order], parents[order]
        keys: list[bytes] = [b""]
        bases = np.array([offsets[0]])
        rules: dict[str, str] = {}
        while len(bases):  # all nodes of one depth at a time
            first, stop = np.searchsorted(parents, bases, "left"), np.searchsorted(parents, bases, "right")
            counts = stop - first
            rows = np.repeat(np.arange(len(bases)), counts)
            within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            nodes = children[first[rows] + within]
            if len(nodes) > MAX_RULES:
                raise wrong(f"more than {MAX_RULES:,} rules")
            keys = [keys[row] + bytes([label]) for row, label in zip(rows.tolist(), labels[nodes].tolist())]
            bases = nodes ^ offsets[nodes]
            if keys and len(keys[0]) > MAX_RULE_BYTES:
                raise wrong(f"a rule replaces more than {MAX_RULE_BYTES} bytes")
            for at in np.flatnonzero(units[nodes] >> 8 & 1).tolist():
                if bases[at] >= len(units):
                    raise wrong(f"the rule for {brief(keys[at])} is outside the trie")
                value = int(units[bases[at]]) & 0x7FFFFFFF
                end = targets.find(b"\0", value)
                if not 0 <= value <= len(targets):
                    raise wrong(f"the rule for {brief(keys[at])} points outside the targets")
                try:
                    rules[keys[at].decode()] = targets[value : end if end >= 0 else None].decode()
                except UnicodeDecodeError:
                    raise wrong(f"the rule for {brief(keys[at])} is not UTF-8") from None
        return cls(rules)

    @cached_property
    def begins(self) -> Pattern[str]:
        """Matches where a rule may apply: a character with a rule, or the first two characters of a longer rule."""
        single = {ord(key) for key in self.rules if len(key) == 1}
        firsts = {ord(key[0]) for key in self.rules if len(key) > 1} - single
        seconds = {ord(key[1]) for key in self.rules if len(key) > 1}
        ways = [f"[{bracket(singles(single))}]"] * bool(single)
        ways += [f"[{bracket(singles(firsts))}](?=[{bracket(singles(seconds))}])"] * bool(firsts)
        return compiled("|".join(ways) or r"(?!)")

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """First character → the lengths of the rules that begin with it, longest first."""
        lengths: dict[str, set[int]] = {}
        for key in self.rules:
            lengths.setdefault(key[0], set()).add(len(key))
        return {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}

    def longest(self, text: str, at: int) -> str | None:
        """The text replaced by the longest rule that applies at position ``at``, or None."""
        for length in self._lengths.get(text[at], ()):
            if (part := text[at : at + length]) in self.rules:
                return part
        return None

    def shortest(self, text: str) -> str | None:
        """The target of the shortest rule that applies at the start of a text, or None."""
        for length in reversed(self._lengths.get(text[0], ())):
            if (target := self.rules.get(text[:length])) is not None:
                return target
        return None


@dataclass(frozen=True, eq=False)
class PrecompiledNormalizer(Normalizer):
    """The map as ``tokenizers`` applies it.

    The shortest rule at the start of a grapheme cluster of less than six bytes replaces the whole cluster. In other
    clusters the rules apply to each character. A dropped character counts as part of the character before it, even if
    the character before it was replaced.
    """

    map: CharsMap

    def steps(self) -> list[Rewrite]:
        return [Rewrite(matches(r"(?s).+"), lambda text: placed(self._changes(text)))]

    def __call__(self, text: str) -> str:
        return super().__call__(text) if self.map.begins.search(text) else text

    def aligned(self, text: AlignedText) -> AlignedText:
        return super().aligned(text) if self.map.begins.search(text.text) else text

    @cached_property
    def _unchanged(self) -> re.Pattern[str]:
        """Matches a run of characters without rules that is not followed by a joining character.

        ``re`` is used because it turns large sets into tables.
        """
        joins, rules = set(letters(members("text.joins") or ())), self.map.rules
        special = {key[0] for key in rules if len(key) == 1 or key[1] not in joins} | {"\r"}
        stops = bracket(singles(map(ord, special)), "text.joins", "text.prepends")
        return re.compile(rf"(?:[^{stops}](?![{bracket('text.joins')}])){{1,4096}}")

    def _clusters(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a text: a cluster with False, or a run of clusters that stay unchanged with True."""
        at = 0
        while at < len(text):
            run = self._unchanged.match(text, at)
            match = run or clusters().match(text, at)
            yield match[0], run is not None
            at = match.end()

    def _changes(self, text: str) -> list[tuple[str, int]]:
        changes: list[tuple[str, int]] = []
        for cluster, unchanged in self._clusters(text):
            check_growth(len(text), len(changes))
            if unchanged:
                changes += [(letter, 0) for letter in cluster]
                continue
            replacement = self.map.shortest(cluster) if len(cluster.encode()) < 6 else None
            for part in cluster if replacement is None else (cluster,):
                target = self.map.shortest(part) if replacement is None else replacement
                if target is None:
                    changes.append((part, 0))
                    continue
                more = len(target) - len(part)
                first_inserted = len(target) - max(more, 0)
                changes.extend((new, int(at >= first_inserted)) for at, new in enumerate(target))
                if more < 0 and changes:
                    changes[-1] = (changes[-1][0], changes[-1][1] + more)
        return changes


@cache
def clusters() -> Pattern[str]:
    """Matches extended grapheme clusters (UAX #29), except Indic conjuncts, which always have more than six bytes."""
    control, joins, prepend = bracket("GCB=Control"), bracket("text.joins"), f"[{bracket('text.prepends')}]"
    lead, vowel, tail = (f"[{bracket(f'GCB={name}')}]" for name in ("L", "V", "T"))
    lv, lvt, flag = (f"[{bracket(f'GCB={name}')}]" for name in ("LV", "LVT", "Regional_Indicator"))
    picture = f"[{bracket('Extended_Pictographic')}]"
    joined = rf"{picture}(?:[{joins}]*\u200D{picture})*"
    hangul = f"{lead}*(?:{vowel}+|{lv}{vowel}*|{lvt}){tail}*|{lead}+|{tail}+"
    core = rf"{hangul}|{flag}{flag}|{joined}|[^\r\n{control}]"
    return compiled(rf"\r\n|[\r\n{control}]|{prepend}*(?:{core})[{joins}]*|(?s:.)")


@dataclass(frozen=True, eq=False)
class SentencePieceNormalizer(Normalizer):
    """SentencePiece's normalizer.

    It applies the map, reduces runs of spaces to one space and strips spaces at the ends (``remove_extra``), inserts a
    space at the start (``dummy_prefix``; with ``suffix`` at the end), and writes spaces as ``▁`` (``escape``). No rule
    changes the pieces in ``protected``. The origin of a character is the original text from its position up to the
    position of the next character.
    """

    map: CharsMap
    dummy_prefix: bool = True
    remove_extra: bool = True
    escape: bool = True
    suffix: bool = False
    protected: Sequence[str] = ()

    def steps(self) -> list[Rewrite]:
        return [Rewrite(matches(r"(?s).+"), lambda text: self._placed(text)[0])]

    def __call__(self, text: str) -> str:
        return "".join([new for new, _ in self._placed(text)[0]])

    def aligned(self, text: AlignedText) -> AlignedText:
        made, end = self._placed(text.text)
        starts = [text.starts[at] if at < len(text) else text.ends[-1] for _, at in made]
        last = text.starts[end] if end < len(text) else text.ends[-1] if len(text) else 0
        return AlignedText("".join([new for new, _ in made]), starts, [*starts[1:], last][: len(starts)], text.origin)

    @cached_property
    def rules(self) -> CharsMap:
        """The map, with identity rules for ``protected`` pieces instead of the rules that begin with such a piece."""
        protected = tuple(piece for piece in self.protected if piece)
        if not protected:
            return self.map
        others = {key: new for key, new in self.map.rules.items() if not key.startswith(protected)}
        return CharsMap(others | {piece: piece for piece in protected})

    def _chunks(self, text: str) -> Iterator[tuple[int, str, int]]:
        """The parts of a text: index of the first character, replacement, number of replaced characters."""
        at = 0
        while at < len(text):
            match = self.rules.begins.search(text, at)
            start = len(text) if match is None else match.start()
            yield from ((index, text[index], 1) for index in range(at, start))
            at = start
            if match is not None:
                rule = self.rules.longest(text, at)
                yield at, self.rules.rules[rule] if rule else text[at], len(rule or text[at])
                at += len(rule or text[at])

    def _placed(self, text: str) -> tuple[list[tuple[str, int]], int]:
        """The normalized characters with their positions in the text, and the position of the end of the text."""
        space = SPACE if self.escape else " "
        out: list[tuple[str, int]] = []
        consumed, after_space, started = 0, self.remove_extra, False
        for at, new, length in self._chunks(text):
            if not started and self.remove_extra and new == " ":
                consumed = at + length
                continue
            if not started:
                started = True
                if self.dummy_prefix and not self.suffix:
                    out.append((space, consumed))
            if after_space:
                new = new.lstrip(" ")
            out.extend((space if letter == " " else letter, at) for letter in new)
            check_growth(len(text), len(out))
            if new:
                after_space = new.endswith(" ")
            consumed = at + length
            if not self.remove_extra:
                after_space = False
        while started and self.remove_extra and out and out[-1][0] == space:
            consumed = out.pop()[1]
        if started and self.dummy_prefix and self.suffix:
            out.append((space, consumed))
        return out, consumed
