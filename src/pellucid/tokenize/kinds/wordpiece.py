"""WordPiece, which cuts words greedily into the longest pieces, and vocabularies of whole words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pellucid.kernels.core.definitions import KernelKey
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.gguf_fields import GGUFFields, SpecialTokenDefaults
from pellucid.tokenize.files.json_model import JsonModelReader
from pellucid.tokenize.files.sentencepiece import WORD, SentencePieceParts
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.stages.decode import SPACE
from pellucid.tokenize.stages.decode_steps import StepDecoder, WordPieceStep
from pellucid.tokenize.stages.normalize import Bert
from pellucid.tokenize.stages.postprocess import A, B, Template
from pellucid.tokenize.stages.pretokenize import BEFORE_SPACES, BERT, PreTokenizer, Split
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel, without_token
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

if TYPE_CHECKING:
    from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
    from pellucid.tokenize.files.tokenizer_json import TokenizerJson

# WordPiece: cuts words greedily into the longest pieces (Devlin et al. 2019, BERT; Schuster & Nakajima 2012). A piece
# inside a word has the prefix ``##``, such as ``##ing``. A word without a segmentation becomes one unknown token.


class WordPiece(TokenizerModel):
    """The model stage: one word → ids. Words of more than ``longest`` characters become ``unknown``."""

    def __init__(self, ids: Mapping[str, int], unknown: int, prefix: str = "##", longest: int = 100) -> None:
        self._ids, self._unknown, self._prefix, self._longest = ids, unknown, prefix, longest
        self._reach = max(map(len, ids), default=0)

    def spans(self, pre_token: str) -> list[Span]:
        if len(pre_token) > self._longest:
            return [(self._unknown, 0, len(pre_token))]
        spans: list[Span] = []
        start = 0
        while start < len(pre_token):
            for stop, _, index in self._tries(pre_token, start):
                if index is not None:
                    spans.append((index, start, stop))
                    start = stop
                    break
            else:
                return [(self._unknown, 0, len(pre_token))]
        return spans

    def _tries(self, pre_token: str, start: int) -> Iterator[tuple[int, str, int | None]]:
        """The candidate pieces at a position, longest first: end, spelling, and id (None: not in the vocabulary)."""
        prefix = self._prefix if start else ""
        for stop in range(min(len(pre_token), start + self._reach), start, -1):
            spelled = prefix + pre_token[start:stop]
            yield stop, spelled, self._ids.get(spelled)

    def explain(self, pre_token: str) -> dict[str, Any]:
        """The candidates at each position, up to the piece found; or the reason why the word is unknown."""
        if len(pre_token) > self._longest:
            return {"unknown": f"{len(pre_token)} characters; words have {self._longest} at most"}
        steps: list[dict[str, Any]] = []
        start = 0
        while start < len(pre_token):
            tried = []
            for stop, spelled, index in self._tries(pre_token, start):
                tried.append(spelled)
                if index is not None:
                    steps.append({"at": start, "tried": tried, "found": spelled, "id": index})
                    start = stop
                    break
            else:
                steps.append({"at": start, "tried": tried, "found": None})
                return {"tries": steps, "unknown": f"no piece begins at character {start}"}
        return {"tries": steps}

    kernel = KernelKey("text.wordpiece")

    def compiled(self) -> CompiledModel:
        import numpy as np

        from pellucid.kernels.text import segment
        from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
        from pellucid.tokenize.compiled.tables import PieceTree, SpelledPieces

        prefix, size = self._prefix, 1 + max(self._ids.values())
        more = {p.removeprefix(prefix): index for p, index in self._ids.items() if p.startswith(prefix)}
        spelled = [SpelledPieces.by_id(pieces, size) for pieces in (self._ids, more)]
        words, others = map(PieceTree, spelled)
        lengths = np.where(spelled[1].lengths > 0, spelled[1].lengths, spelled[0].lengths)
        lengths[self._unknown] = -1
        known = {
            "slots": words.slots,
            "ids": words.ids,
            "more_slots": others.slots,
            "more_ids": others.ids,
            "unknown": self._unknown,
            "longest": self._longest,
        }
        scratch_bytes = segment.wordpiece_scratch_bytes
        return CompiledModel(self.kernel, segment.WordPieceRecord, scratch_bytes, lengths, known)


def from_json(parts: TokenizerJson) -> WordPiece:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(
        parts.model, "model", "vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"
    )
    prefix = parts.text(model, "continuing_subword_prefix", "##")
    longest = parts.whole(model, "max_input_chars_per_word", 1, (1 << 31) - 1, 100)
    return WordPiece(parts.vocab, parts.id_of(model["unk_token"], "model.unk_token"), prefix, longest)


def from_gguf(fields: GGUFFields) -> Tokenizer:
    """A tokenizer from the fields of a GGUF file. GGUF spells words ``▁word``, and inner pieces without ``##``.

    Raises FileFormatError.
    """
    vocabulary = fields.vocabulary()
    tokens = [_spelled(token, vocabulary.types[index]) for index, token in enumerate(vocabulary.tokens)]
    vocabulary = Vocabulary(tokens, vocabulary.types, fields.path, "tokenizer.ggml.tokens")
    ids = {name: fields.token_id(name, vocabulary.size) for name in ("cls", "unknown", "bos")}
    cls, unknown = ids["cls"] if ids["cls"] is not None else ids["bos"], ids["unknown"]
    sep = fields.separator(vocabulary.size)
    if cls is None or sep is None or unknown is None:
        absent = "cls" if cls is None else "seperator" if sep is None else "unknown"
        raise fields.wrong(f"{absent}_token_id", "missing")
    lowercase = fields.get("ggml.normalizer.lowercase", bool, True)
    pieces = dict(vocabulary.ids)
    for index in vocabulary.special_ids - {unknown}:
        del pieces[vocabulary.tokens[index]]
    return Tokenizer(
        normalizer=Bert(
            strip_accents=fields.get("ggml.normalizer.strip_accents", bool, lowercase), lowercase=lowercase
        ),
        pre_tokenizer=PreTokenizer((BERT,)),
        model=WordPiece(pieces, unknown),
        decoder=StepDecoder(vocabulary.tokens, [WordPieceStep("##", cleanup=True)]),
        **fields.shared(vocabulary, SpecialTokenDefaults())
        | {"post_processor": Template(((cls, 0), (A, 0), (sep, 0)), ((cls, 0), (A, 0), (sep, 0), (B, 1), (sep, 1)))},
    )


def _spelled(token: str, kind: int) -> str:
    """The spelling of a piece in ``vocab.txt``. This undoes the change of llama.cpp's ``convert_hf_to_gguf.py``."""
    if kind in SPECIAL_TYPES or (token.startswith("[") and token.endswith("]")):
        return token
    if token.startswith(SPACE):
        return token[1:]
    return f"##{token}" if kind == TokenType.NORMAL else token


KIND = Kind("wordpiece", gguf={"bert": from_gguf}, json=JsonModelReader("WordPiece", from_json))


# Whole words: each word is a piece or unknown. Hugging Face calls this kind WordLevel. SentencePiece's model type WORD
# also splits the text into words.


class WordLevel(TokenizerModel):
    """The model stage: one word → one id.

    A word that is not in the vocabulary becomes the id ``unknown``. If ``unknown`` is None, such a word is refused.
    ``words`` splits a pre-token into words. If ``words`` is None, a pre-token is one word. Adjacent unknown words
    become one token.
    """

    def __init__(self, ids: Mapping[str, int], unknown: int | None, words: Split | None = None) -> None:
        self._ids, self._unknown, self._words = ids, unknown, words

    def spans(self, pre_token: str) -> list[Span]:
        spans: list[Span] = []
        for start, stop in [(0, len(pre_token))] if self._words is None else self._words.spans(pre_token):
            index = self._ids.get(pre_token[start:stop], self._unknown)
            if index is None:
                raise without_token(pre_token[start:stop])
            if spans and spans[-1][0] == index == self._unknown:
                spans[-1] = (index, spans[-1][1], stop)
            else:
                spans.append((index, start, stop))
        return spans

    def explain(self, pre_token: str) -> dict[str, Any]:
        words = [pre_token] if self._words is None else self._words(pre_token)
        unknown = [word for word in words if word not in self._ids]
        return {"unknown": f"not in the vocabulary: {', '.join(map(repr, unknown))}"} if unknown else {}


def wordlevel_from_json(parts: TokenizerJson) -> WordLevel:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", "vocab", "unk_token")
    unknown = parts.vocabulary.ids.get(parts.text(model, "unk_token", "<unk>"))
    return WordLevel(parts.text_ids, unknown)


def from_sentencepiece(parts: SentencePieceParts) -> WordLevel:
    """The model stage of a SentencePiece file."""
    return WordLevel(parts.pieces, parts.unknown, BEFORE_SPACES)


WORDLEVEL_KIND = Kind(
    "wordlevel", json=JsonModelReader("WordLevel", wordlevel_from_json), sentencepiece={WORD: from_sentencepiece}
)
