"""SentencePiece-style BPE with byte fallback: characters merged by score (Kudo & Richardson 2018).

Spaces become ``▁``, and the text is not split into words. A character without a piece becomes its UTF-8 bytes,
``<0x00>`` … ``<0xFF>``. Gemma, Llama 2 and Mistral use this kind. GGUF calls this kind ``llama``, or
``gemma4`` if the vocabulary has merges instead of scores. Encoders with Gemma's vocabulary have the name of byte-level
BPE, ``gpt2``, and a pre-tokenizer of their own; the text of mmBERT is split into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pellucid.errors import UnsupportedModel, brief
from pellucid.kernels.core.definitions import KernelKey
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.gguf_fields import GGUFFields, SpecialTokenDefaults
from pellucid.tokenize.files.json_model import JsonModelReader
from pellucid.tokenize.files.sentencepiece import BPE, SentencePieceParts
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.kinds import byte_bpe
from pellucid.tokenize.kinds.byte_bpe import BPE_FIELDS, BPE_VALUES, explain_merges
from pellucid.tokenize.kinds.char import Affixes, Chars
from pellucid.tokenize.merges import Log, Ranks, ScoreRanks, merge, merge_spans
from pellucid.tokenize.patterns.oniguruma_sets import quoted
from pellucid.tokenize.stages.decode import SPACE
from pellucid.tokenize.stages.decode_steps import ByteFallbackStep, FuseStep, ReplaceStep, StepDecoder, StripStep
from pellucid.tokenize.stages.normalize import Normalizer, Prepend, Replace, sequence
from pellucid.tokenize.stages.pretokenize import BEFORE_SPACES, NormalizeStep, PreTokenizer, Split, Stage
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

if TYPE_CHECKING:
    from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
    from pellucid.tokenize.files.tokenizer_json import TokenizerJson


class CharBPE(Chars):
    """The model stage: merges the symbols of :class:`Chars`.

    With ``ignore_merges``, a pre-token that equals a piece becomes this piece without merging.
    """

    separates = True

    def __init__(
        self,
        names: Sequence[str],
        pieces: Mapping[str, int],
        pairs: Ranks,
        byte_ids: Mapping[int, int],
        unknown: int | None,
        fuse: bool = True,
        ignore_merges: bool = False,
        exactly: bool = False,
        affixes: Affixes | None = None,
    ) -> None:
        super().__init__(names, pieces, byte_ids, unknown, fuse, exactly, affixes)
        self.pairs, self._ignore_merges = pairs, ignore_merges

    @cached_property
    def cut(self) -> Split | None:  # type: ignore[override]
        """A split of the text before each ``▁``, except where a piece may span this position.

        Few characters come before a ``▁`` within a piece: in Gemma only ``>``, in the piece ``>▁</``.
        """
        if self._ignore_merges or SPACE not in self._pieces or self._affixes is not None:
            return None
        joined = quoted("".join(sorted(_before_spaces(self._names, self._pieces))))
        word = f"(?:[{joined}]{SPACE}*|[^{SPACE}{joined}]+)" if joined else f"[^{SPACE}]"
        return Split(f"{SPACE}*{word}+|{SPACE}+", is_linear=True)

    def __call__(self, pre_token: str) -> list[int]:
        if self._ignore_merges and (index := self._pieces.get(pre_token)) is not None:
            return [index]
        known = [self._pieces.get(character) for character in pre_token]
        if None in known or self._affixes is not None:
            return merge([index for index, _, _ in self.symbols(pre_token)], self.pairs)
        return merge(known, self.pairs)  # type: ignore[arg-type]

    def spans(self, pre_token: str, log: Log | None = None) -> list[Span]:
        """The ids with the characters that they cover; each byte of a character covers the whole character."""
        if self._ignore_merges and (index := self._pieces.get(pre_token)) is not None:
            return [(index, 0, len(pre_token))]
        return merge_spans(self.symbols(pre_token), self.pairs, log)

    def explain(self, pre_token: str) -> dict[str, Any]:
        """The merges in order, each with its rank or score. If the pre-token equals a piece, only ``whole``."""
        if self._ignore_merges and pre_token in self._pieces:
            return {"whole": True}
        return explain_merges(self.symbols(pre_token), self.pairs, self._names)

    @property
    def kernel(self) -> KernelKey | None:
        """The kernel of the compiled form; None for affixes with bytes or with whole pieces."""
        if self._affixes is not None and (self._ignore_merges or self._byte_ids):
            return None
        return KernelKey("text.merge", symbols="characters", whole=self._ignore_merges)

    def compiled(self) -> CompiledModel:
        import numpy as np

        from pellucid.tokenize.compiled.compiled_pipeline import merging
        from pellucid.tokenize.compiled.tables import NeighbourTable, SpelledPieces, WordTable, byte_table
        from pellucid.tokenize.unicode import CODES

        affixes = Affixes() if self._affixes is None else self._affixes
        by_place = affixes.by_place()[: 1 if self._affixes is None else 4]
        tables = np.full((len(by_place), CODES), -1, np.int32)
        for table, (before, after) in zip(tables, by_place):
            for piece, index in self._pieces.items():
                if len(piece) == len(before) + 1 + len(after) and piece.startswith(before) and piece.endswith(after):
                    table[ord(piece[len(before)])] = index
        characters = tables[0]
        # No cut is made next to an unknown character, because it affects its neighbours. It may be fused with the next
        # unknown character, its token may come after the bytes of later characters, or it may be dropped, which joins
        # its neighbours.
        matters = self._fuse or self._unknown is None or bool(self._byte_ids)
        together = (characters < 0) & (len(self._byte_ids) < 256 and matters)
        words = self._pieces
        if affixes.suffix:  # the text of a word is its piece without the suffix
            words = {
                piece.removesuffix(affixes.suffix): index
                for piece, index in self._pieces.items()
                if piece.endswith(affixes.suffix)
            }
        spelled = SpelledPieces.by_id(words, self.pairs.size)
        lengths = spelled.lengths
        if self._affixes is not None:  # a cut would give a part affixes; a piece may cover fewer bytes than it has
            together[:], lengths[:] = True, -1
        lengths[[*self._byte_ids.values()]] = -1 if self._exactly else 1
        if self._unknown is not None:
            lengths[self._unknown] = -1
        return merging(
            "characters",
            self._ignore_merges,
            self.pairs.compiled(),
            WordTable(spelled),
            NeighbourTable.of_text(self._pieces, together),
            lengths,
            bytes=byte_table(self._byte_ids),
            characters=tables,
            by_place=0 if self._affixes is None else tables.strides[0],
            unknown=-1 if self._unknown is None else self._unknown,
            fuse=int(self._fuse),
        )


def _before_spaces(names: Sequence[str], pieces: Mapping[str, int]) -> set[str]:
    """The characters that come before a ``▁`` within a piece; for a StringArray also within control tokens."""
    from pellucid.weights.gguf_values import StringArray

    if isinstance(names, StringArray):  # no need to create the strings
        return names.before(SPACE) - {SPACE}
    spaced = [piece for piece in pieces if piece.find(SPACE, 1) > 0]  # few pieces have an inner ▁
    return {piece[at] for piece in spaced for at in range(len(piece) - 1) if piece[at + 1] == SPACE} - {SPACE}


def from_gguf(fields: GGUFFields) -> Tokenizer:
    """A tokenizer from the fields of a GGUF file. Raises FileFormatError."""
    vocabulary = fields.vocabulary()
    scores, pieces = fields.scores(vocabulary.size), _text_pieces(vocabulary)
    user = frozenset(vocabulary.of_type(TokenType.USER_DEFINED))
    pairs = ScoreRanks(vocabulary.tokens, pieces, scores, first=user)
    return _gguf_tokenizer(fields, vocabulary, pieces, pairs, fields.get("ggml.add_space_prefix", bool, True))


def from_gguf_with_merges(fields: GGUFFields) -> Tokenizer:
    """A tokenizer with merges instead of scores (Gemma 4). Raises FileFormatError.

    As in llama.cpp, a text begins with BOS even if the file says otherwise. A generation also ends when the model waits
    for the result of a tool.
    """
    vocabulary = fields.vocabulary()
    if fields.token_id("bos", vocabulary.size) is not None:
        fields = fields.with_value("ggml.add_bos_token", True)
    pairs = byte_bpe.gguf_pairs(fields, vocabulary)
    waiting = vocabulary.ids.get(TOOL_RESPONSE)
    ends = frozenset[int]() if waiting is None else frozenset({waiting})
    return _gguf_tokenizer(fields, vocabulary, _text_pieces(vocabulary), pairs, prefix=False, ends=ends)


TOOL_RESPONSE = "<|tool_response>"


def from_gguf_with_words(fields: GGUFFields, words: bool) -> Tokenizer:
    """A tokenizer of an encoder with Gemma's vocabulary. Raises FileFormatError.

    With ``words``, a space is put before each text, and the text is split before spaces, as Metaspace does (mmBERT).
    Otherwise a text begins with BOS even if the file says otherwise, as in llama.cpp.
    """
    # These files spell user-defined tokens of spaces with spaces, as files of the model "llama" do.
    vocabulary = fields.with_value("ggml.model", "llama").vocabulary()
    if not words and fields.token_id("bos", vocabulary.size) is not None:
        fields = fields.with_value("ggml.add_bos_token", True)
    pairs = byte_bpe.gguf_pairs(fields, vocabulary)
    return _gguf_tokenizer(fields, vocabulary, _text_pieces(vocabulary), pairs, prefix=False, words=words)


def _metaspace() -> PreTokenizer:
    """Spaces become ``▁``, one is put before the text, and the text is split before each."""
    before = Prepend(SPACE, unless_there=True)
    return PreTokenizer((NormalizeStep(Replace(" ", SPACE)), NormalizeStep(before), BEFORE_SPACES))


def _text_pieces(vocabulary: Vocabulary) -> Mapping[str, int]:
    return vocabulary.ids_without(*SPECIAL_TYPES, TokenType.BYTE)


def _gguf_tokenizer(
    fields: GGUFFields,
    vocabulary: Vocabulary,
    pieces: Mapping[str, int],
    pairs: Ranks,
    prefix: bool,
    ends: frozenset[int] = frozenset(),
    words: bool = False,
) -> Tokenizer:
    """With ``prefix``, a space is put before the text. ``ends`` are further tokens that end a generation.

    With ``words``, a text is split into words (``from_gguf_with_words``), and gets BOS only if the file says so.
    """
    values = vocabulary.byte_pieces(fields.path, "tokenizer.ggml.tokens")
    if (
        fields.get("ggml.model", str) == byte_bpe.GGUF_MODEL
    ):  # converters store the bytes of these files as normal pieces
        named = {f"<0x{byte:02X}>": byte for byte in range(256)}
        values |= {pieces[name]: byte for name, byte in named.items() if name in pieces}
    shared = fields.shared(vocabulary, SpecialTokenDefaults(bos=not words))
    shared["eos_ids"] |= ends
    unknown = fields.token_id("unknown", vocabulary.size)
    steps: list[Normalizer] = [Prepend(SPACE)] if prefix else []
    return Tokenizer(
        normalizer=None if words else sequence([*steps, Replace(" ", SPACE)]),
        pre_tokenizer=_metaspace() if words else PreTokenizer(),
        model=CharBPE(vocabulary.tokens, pieces, pairs, {byte: index for index, byte in values.items()}, unknown),
        decoder=StepDecoder(
            vocabulary.tokens,
            [
                ReplaceStep(Replace(SPACE, " ")),
                ByteFallbackStep(),
                FuseStep(),
                *([StripStep(" ", 1, 0)] if prefix or words else []),
            ],
            verbatim=frozenset(vocabulary.of_type(*SPECIAL_TYPES)),
        ),
        **shared,
    )


def claims(parts: TokenizerJson, stages: Sequence[Stage]) -> bool:
    """True if a ``tokenizer.json`` with a BPE model is of this kind."""
    return not byte_bpe.claims(parts, stages)


def from_json(parts: TokenizerJson) -> CharBPE:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", *BPE_FIELDS, **BPE_VALUES)
    unknown = None if model.get("unk_token") is None else parts.id_of(model["unk_token"], "model.unk_token")
    return CharBPE(
        parts.vocabulary.tokens,
        parts.text_ids,
        byte_bpe.json_pairs(parts),
        parts.byte_ids,
        unknown,
        bool(model.get("fuse_unk")),
        bool(model.get("ignore_merges")),
        affixes=Affixes(*affixes) if any(affixes := byte_bpe.affixes(parts)) else None,
    )


def from_sentencepiece(parts: SentencePieceParts) -> CharBPE:
    """The model stage of a SentencePiece file. Raises UnsupportedModel."""
    vocabulary = parts.vocabulary
    if unused := vocabulary.of_type(TokenType.UNUSED):
        raise UnsupportedModel(
            f"{parts.path.name}: BPE with pieces of type UNUSED, as {brief(vocabulary.tokens[unused[0]])}, is not "
            "implemented"
        )
    pieces = parts.pieces
    pairs = ScoreRanks(vocabulary.tokens, pieces, parts.file.scores, by_score_alone=True)
    return CharBPE(vocabulary.tokens, pieces, pairs, parts.byte_ids, parts.unknown, exactly=True)


KIND = Kind(
    "sentencepiece_bpe",
    gguf={"llama": from_gguf, "gemma4": from_gguf_with_merges},
    gguf_pre={
        "mmbert": partial(from_gguf_with_words, words=True),
        "granite-embed-multi-311m": partial(from_gguf_with_words, words=False),
    },
    json=JsonModelReader("BPE", from_json, claims),
    sentencepiece={BPE: from_sentencepiece},
)
