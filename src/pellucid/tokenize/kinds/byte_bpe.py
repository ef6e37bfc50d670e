"""Byte-level BPE: text as UTF-8 bytes, merged by a ranked list (Radford et al. 2019, GPT-2).

Pieces are spelled in an alphabet with one printable character for each byte ("Ġ" is the space). Every text can
therefore be encoded, and decoding is exact. Models differ only in data: the pre-tokenizer's patterns
(``patterns/published.py``), the vocabulary and the merges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import FileFormatError, UnsupportedModel, brief
from pellucid.kernels.core.definitions import KernelKey
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.gguf_fields import GGUFFields, SpecialTokenDefaults
from pellucid.tokenize.files.json_model import JsonModelReader
from pellucid.tokenize.kind import Kind, known_pre
from pellucid.tokenize.merges import BY_RANK, Log, PairRanks, Ranks, ScoreRanks, merge, merge_spans
from pellucid.tokenize.patterns.published import GGUF_PRE
from pellucid.tokenize.stages.decode import byte_letters
from pellucid.tokenize.stages.decode_steps import ByteLevelStep, StepDecoder
from pellucid.tokenize.stages.pretokenize import PreTokenizer, Split, Stage
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

if TYPE_CHECKING:
    from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
    from pellucid.tokenize.files.tokenizer_json import TokenizerJson

# Minimum number of merges of a cached table. A larger table is read from the cache faster than it is parsed.
WORTH_CACHING = 10_000

GGUF_MODEL = "gpt2"
"""The name of byte-level BPE in ``tokenizer.ggml.model``."""


class ByteBPE(TokenizerModel):
    """The model stage: merges the bytes of a pre-token.

    ``lost`` are the bytes without a piece. Some vocabularies, such as SmolLM2's, have no pieces for control characters
    that were not in the training text. These bytes are dropped, as in every other engine. Raises
    :class:`FileFormatError` if a printable ASCII character has no piece, because the vocabulary is then of another
    kind.
    """

    spells_bytes = True

    def __init__(self, pairs: Ranks, ids: Mapping[str, int], ignore_merges: bool, path: Path) -> None:
        self.pairs, self._ignore_merges, self._ids = pairs, ignore_merges, ids
        self._spelling = byte_letters()
        self._byte_ids = {byte: ids[char] for byte, char in enumerate(self._spelling) if char in ids}
        self.lost = frozenset(range(256)) - self._byte_ids.keys()
        printable = sorted(self.lost & set(range(0x20, 0x7F)))
        if printable:
            raise FileFormatError(path, "vocabulary", f"no piece for byte 0x{printable[0]:02X}")

    def __call__(self, pre_token: str) -> list[int]:
        data = pre_token.encode()
        if (index := self._whole_piece(data)) is not None:
            return [index]
        if self.lost.isdisjoint(data):
            return merge([self._byte_ids[byte] for byte in data], self.pairs)
        return merge([self._byte_ids[byte] for byte in data if byte in self._byte_ids], self.pairs)

    def _whole_piece(self, data: bytes) -> int | None:
        """The id of a pre-token that equals a piece; None without ``ignore_merges``, or if no piece equals it."""
        if not self._ignore_merges:
            return None
        return self._ids.get("".join([self._spelling[byte] for byte in data]))

    def spans(self, pre_token: str, log: Log | None = None) -> list[Span]:
        """The ids with the characters that they cover; an id with any byte of a character covers the whole character.

        A dropped byte shifts all later offsets of its pre-token to the left, as in Hugging Face ``tokenizers``, which
        computes offsets from the bytes of the ids.
        """
        data = pre_token.encode()
        if (index := self._whole_piece(data)) is not None:
            return [(index, 0, len(pre_token))]
        return merge_spans(self._symbols(pre_token), self.pairs, log)

    def _symbols(self, pre_token: str) -> list[Span]:
        # For each byte of the spelling, the index of its character. The spelling of a byte has one or two bytes.
        owners: list[int] = []
        known: list[tuple[int, int]] = []
        for at, character in enumerate(pre_token):
            for byte in character.encode():
                width = len(self._spelling[byte].encode())
                owners.extend([at] * width)
                if byte in self._byte_ids:
                    known.append((self._byte_ids[byte], width))
        symbols, done = [], 0
        for index, width in known:
            symbols.append((index, owners[done], owners[done + width - 1] + 1))
            done += width
        return symbols

    def explain(self, pre_token: str) -> dict[str, Any]:
        """The merges in order, each with its rank. If the pre-token equals a piece, only ``whole``."""
        if self._whole_piece(pre_token.encode()) is not None:
            return {"whole": True}
        return explain_merges(self._symbols(pre_token), self.pairs, self._names)

    @cached_property
    def _names(self) -> dict[int, str]:
        return {index: name for name, index in self._ids.items()}

    @property
    def kernel(self) -> KernelKey:
        return KernelKey("text.merge", symbols="bytes", whole=self._ignore_merges)

    def compiled(self) -> CompiledModel:
        from pellucid.tokenize.compiled.compiled_pipeline import merging
        from pellucid.tokenize.compiled.tables import NeighbourTable, SpelledPieces, WordTable, byte_table

        ids, spelled = byte_table(self._byte_ids), SpelledPieces.in_alphabet(self._ids, self.pairs.size)
        pairs = self.pairs.compiled()
        known = {"bytes": ids, "first": pairs.of_bytes(ids)}
        around = NeighbourTable.of_bytes(spelled, self.lost)
        return merging("bytes", self._ignore_merges, pairs, WordTable(spelled), around, spelled.lengths, **known)


def explain_merges(symbols: Sequence[Span], pairs: Ranks, names: Mapping[int, str] | Sequence[str]) -> dict[str, Any]:
    """The initial symbols, and the rank or score, the parts and the result of every merge.

    ``at`` of a merge is the index of the first symbol of the merge's left part.
    """
    log: Log = []
    merge_spans(symbols, pairs, log)
    now = [index for index, _, _ in symbols]
    merges = []
    for value, left, right in log:
        merged = value % pairs.size
        parts = {"left": names[now[left]], "right": names[now[right]], "merged": names[merged]}
        ids = {"left_id": now[left], "right_id": now[right], "id": merged}
        merges.append({pairs.label: pairs.rank(value), "at": left, **parts, **ids})
        now[left] = merged
    return {"symbols": [names[index] for index, _, _ in symbols], "merges": merges}


def pair_ranks(
    merges: Sequence[str | Sequence[str]],
    ids: Mapping[str, int],
    vocabulary: Vocabulary,
    path: Path,
    field: str,
    prefix: str = "",
) -> PairRanks:
    """The merge table of a list of merges in order of rank. A merge is "left right" or [left, right].

    ``prefix`` is removed from a right part before the parts are joined. A merge into a control token is ignored.
    Raises :class:`FileFormatError`.
    """
    lefts, rights = merge_parts(merges, path, field)
    try:
        appended = [right.removeprefix(prefix) for right in rights] if prefix else rights
        left_ids, right_ids = ([ids[piece] for piece in parts] for parts in (lefts, rights))
        merged = [ids[left + right] for left, right in zip(lefts, appended)]
    except (KeyError, TypeError, AttributeError):
        for at, (left, right) in enumerate(zip(lefts, rights)):
            for piece in (left, right, f"{left}{str(right).removeprefix(prefix)}"):
                if not isinstance(piece, str) or piece not in ids:
                    problem = f"merge {at}, {brief(merges[at])}: {brief(piece)} is not in the vocabulary"
                    raise FileFormatError(path, field, problem) from None
        raise
    import numpy as np

    results = np.array(merged, np.int32)
    results[np.isin(results, list(vocabulary.special_ids))] = -1
    return PairRanks(np.array(left_ids, np.int32), np.array(right_ids, np.int32), results, vocabulary.size)


def json_pairs(parts: TokenizerJson) -> PairRanks:
    """The merge table of a ``tokenizer.json``. If a pair has two entries, the last entry wins, as in ``tokenizers``.

    Raises :class:`FileFormatError`.
    """
    if parts.pairs is None:
        prefix, _ = affixes(parts)
        pairs = pair_ranks(parts.model["merges"], parts.vocab, parts.vocabulary, parts.path, "model.merges", prefix)
        parts.pairs = pairs.with_last()
    return parts.pairs


def affixes(parts: TokenizerJson) -> tuple[str, str]:
    """The prefix of pieces inside a word and the suffix at the end of a word. Raises :class:`FileFormatError`."""
    names = ("continuing_subword_prefix", "end_of_word_suffix")
    prefix, suffix = ("" if parts.model.get(name) is None else parts.text(parts.model, name) for name in names)
    return prefix, suffix


def merge_parts(merges: Sequence[Any], path: Path, field: str) -> tuple[list[str], list[str]]:
    """The left parts and the right parts of a list of merges. Raises :class:`FileFormatError`."""
    split = [line.split(" ") if isinstance(line, str) else line for line in merges]
    if not set(map(type, split)) <= {list} or not set(map(len, split)) <= {2}:
        at = next(i for i, parts in enumerate(split) if not isinstance(parts, list) or len(parts) != 2)
        raise FileFormatError(path, field, f"merge {at}, {brief(merges[at])}, is not two pieces")
    lefts, rights = [parts[0] for parts in split], [parts[1] for parts in split]
    if "" in lefts or "" in rights:
        at = next(i for i, parts in enumerate(split) if "" in parts)
        raise FileFormatError(
            path, field, f"merge {at}, {brief(merges[at])}, has an empty piece: merging would never end"
        )
    return lefts, rights


def from_gguf(fields: GGUFFields) -> Tokenizer:
    """A tokenizer from the fields of a GGUF file. Raises FileFormatError, UnsupportedModel."""
    name = fields.get("ggml.pre", str, "default")
    splitting = GGUF_PRE.get(name)
    if splitting is None and (of_other_kind := known_pre().get(name)) is not None:
        return of_other_kind(fields)
    if splitting is None:
        known = ", ".join(sorted([*GGUF_PRE, *known_pre()]))
        raise UnsupportedModel(f"tokenizer.ggml.pre {brief(name)} is not known; known are {known}")
    vocabulary = fields.vocabulary()
    pairs = gguf_pairs(fields, vocabulary)
    around = SpecialTokenDefaults(bos=splitting.add_bos, sep=splitting.add_sep, mask_lstrip=splitting.mask_lstrip)
    verbatim = frozenset(vocabulary.of_type(*SPECIAL_TYPES, TokenType.USER_DEFINED))
    return Tokenizer(
        normalizer=None,
        pre_tokenizer=PreTokenizer(tuple(map(Split, splitting.steps))),
        model=ByteBPE(pairs, vocabulary.ids_without(*SPECIAL_TYPES), splitting.ignore_merges, fields.path),
        decoder=StepDecoder(vocabulary.tokens, [ByteLevelStep()], verbatim),
        **fields.shared(vocabulary, around),
    )


def _pairs(parts: TokenizerJson) -> Ranks:
    if parts.model["merges"] is not BY_RANK:
        return json_pairs(parts)
    ranks = [-float(index) for index in range(parts.vocabulary.size)]
    return ScoreRanks(parts.vocabulary.tokens, parts.text_ids, ranks, by_score_alone=True)


def gguf_pairs(fields: GGUFFields, vocabulary: Vocabulary) -> PairRanks:
    """The merge table of a GGUF file. A large table is cached, because parsing it takes longer than all other steps.

    Raises FileFormatError.
    """
    given = fields.strings("merges")
    if given is None:
        raise fields.wrong("merges", "missing")
    merges = given

    def parse() -> PairRanks:
        return pair_ranks(merges, vocabulary.ids, vocabulary, fields.path, "tokenizer.ggml.merges")

    if len(merges) < WORTH_CACHING:
        return parse()
    model = fields.get("ggml.model", str, "").encode()
    place = parsed_cache.cache_name(_key(vocabulary.tokens), _key(merges), vocabulary.types, model)
    if (arrays := parsed_cache.read(place)) is not None:
        return PairRanks.from_cache(arrays, vocabulary.size)
    pairs = parse()
    parsed_cache.write(place, pairs.to_cache())
    return pairs


def _key(strings: Sequence[str]) -> bytes:
    """Bytes that identify a list of strings."""
    from pellucid.weights.gguf_values import StringArray

    if isinstance(strings, StringArray):  # no need to create the strings
        return strings.encoded
    return "".join([f"{len(string)} {string}" for string in strings]).encode()


def claims(parts: TokenizerJson, stages: Sequence[Stage]) -> bool:
    """True if a ``tokenizer.json`` with a BPE model is of this kind: the model stage can spell all bytes itself.

    In all other files the pre-tokenizer spells the bytes. The model stage then merges the characters of this spelling
    (``kinds/sentencepiece_bpe.py``).
    """
    from pellucid.tokenize.files.json_components import unspelled

    if unspelled(stages) is None or any(affixes(parts)) or parts.model.get("byte_fallback"):
        return False
    return parts.model.get("unk_token") is None or parts.text_ids.keys() >= set(byte_letters())


def from_json(parts: TokenizerJson) -> ByteBPE:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", *BPE_FIELDS, **BPE_VALUES)
    return ByteBPE(_pairs(parts), parts.text_ids, bool(model.get("ignore_merges")), parts.path)


BPE_FIELDS = (
    "vocab", "merges", "unk_token", "fuse_unk", "ignore_merges", "byte_fallback", "dropout",
    "continuing_subword_prefix", "end_of_word_suffix",
)  # fmt: skip
BPE_VALUES: dict[str, tuple[Any, ...]] = {"dropout": (None, 0, 0.0)}
"""The values that are implemented for some fields of a BPE model in ``tokenizer.json``."""


KIND = Kind("byte_bpe", gguf={GGUF_MODEL: from_gguf}, json=JsonModelReader("BPE", from_json, claims))
