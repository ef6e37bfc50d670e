"""Typed access to the tokenizer fields of a GGUF file, and the parts that all kinds read in the same way.

The keys follow the GGUF specification (ggml-org/ggml, ``docs/gguf.md``, "Tokenizer").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pellucid.errors import FileFormatError, UnsupportedModel, brief
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, PieceIds, TokenType, Vocabulary

if TYPE_CHECKING:
    from pellucid.weights.gguf_values import StringArray

END_OF_GENERATION = frozenset((
    "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>",
    "<end_of_turn>", "<turn|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "</s>", "<eos>", "<EOT>",
    "_<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
))  # fmt: skip
"""Control tokens that end a generation in addition to the file's ``eos_token_id``, which is a single id."""


class SpecialTokenDefaults(Struct, frozen=True):
    """The special tokens around texts that a kind of vocabulary adds if the file does not say so.

    With ``mask_lstrip`` the mask token includes the white space before it.
    """

    bos: bool = False
    eos: bool = False
    sep: bool = False
    mask_lstrip: bool = False


class GGUFFields:
    """The metadata of one GGUF file, read with checks. Every method raises :class:`FileFormatError`."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path, self._metadata = path, metadata

    def wrong(self, key: str, problem: str) -> FileFormatError:
        """The error for a problem of the field ``tokenizer.ggml.<key>``."""
        return FileFormatError(self.path, f"tokenizer.ggml.{key}", problem)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of ``tokenizer.<key>``, or the default if it is missing."""
        name = f"tokenizer.{key}"
        value = self._metadata.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise FileFormatError(self.path, name, f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    def with_value(self, key: str, value: Any) -> GGUFFields:
        """A copy with another value of ``tokenizer.<key>``."""
        return GGUFFields(self.path, {**self._metadata, f"tokenizer.{key}": value})

    def array(self, key: str, length: int | None = None) -> list[Any] | None:
        """The array ``tokenizer.ggml.<key>``, or None if it is missing. ``length`` is the required length, if any."""
        value = self._sized(key, length)
        return value.tolist() if hasattr(value, "tolist") else None if value is None else list(value)

    def _sized(self, key: str, length: int | None = None) -> Any:
        """The array ``tokenizer.ggml.<key>`` as the GGUF reader returned it, with the checks of ``array``."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise self.wrong(key, f"expected an array, found {type(value).__name__}")
        if length is not None and len(value) != length:
            raise self.wrong(key, f"{len(value):,} entries for {length:,} tokens")
        return value

    def strings(self, key: str) -> Sequence[str] | None:
        """The array of strings ``tokenizer.ggml.<key>``."""
        from pellucid.weights.gguf_values import StringArray

        if isinstance(values := self._sized(key), StringArray):
            return values
        values = self.array(key)
        if values is not None and not set(map(type, values)) <= {str}:
            at = next(i for i, value in enumerate(values) if type(value) is not str)
            raise self.wrong(key, f"entry {at} is not a string")
        return values

    def scores(self, size: int) -> Sequence[float]:
        """The score of each piece. Raises :class:`FileFormatError` if scores are missing or a score is not finite."""
        import numpy as np

        if (stored := self._sized("scores", size)) is None:
            raise self.wrong("scores", "missing")
        if isinstance(stored, np.ndarray) and stored.dtype.kind in "iuf" and np.isfinite(stored).all():
            # The elements of a memory view are Python numbers.
            return (stored.astype(np.float64) if stored.dtype.kind == "f" else stored).data
        for at, score in enumerate(scores := self.array("scores") or ()):
            if type(score) not in (float, int) or not isfinite(score):
                raise self.wrong("scores", f"entry {at} is {brief(score)}, not a finite number")
        return scores

    def _types(self, size: int) -> Sequence[int] | None:
        """The type of each token, as ``bytes`` if all types are integers below 256; None if the file has no types."""
        import numpy as np

        types = self._sized("token_type", size)
        integers = isinstance(types, np.ndarray) and types.dtype.kind in "iu" and size
        if integers and 0 <= types.min() <= types.max() < 256:
            found: bytes = types.astype(np.uint8).tobytes()
            return found
        return self.array("token_type", size)

    def token_id(self, name: str, size: int) -> int | None:
        """The id ``tokenizer.ggml.<name>_token_id``, checked against the vocabulary size."""
        value: int | None = self.get(f"ggml.{name}_token_id", int)
        if value is not None and not 0 <= value < size:
            raise self.wrong(f"{name}_token_id", f"{value} is outside the vocabulary of {size:,} tokens")
        return value

    def vocabulary(self) -> Vocabulary:
        """The pieces and their types.

        In a SentencePiece vocabulary, user-defined tokens that consist only of spaces are changed back to ``▁``. Files
        spell these tokens with spaces, for engines that match them in the raw text.
        """
        from pellucid.weights.gguf_values import StringArray

        tokens = self.strings("tokens")
        if tokens is None:
            raise self.wrong("tokens", "missing")
        types, model, spaces = self._types(len(tokens)), self.get("ggml.model", str), dict[int, str]()
        if types is not None and model == "llama":
            index = -1
            for _ in range(types.count(TokenType.USER_DEFINED)):
                index = types.index(TokenType.USER_DEFINED, index + 1)
                if (token := tokens[index]).strip(" ") == "":
                    spaces[index] = "▁" * len(token)
        if isinstance(tokens, StringArray) and (types is None or isinstance(types, bytes)):
            every = bytes([TokenType.NORMAL]) * len(tokens) if types is None else types
            return self._large(tokens.with_changes(spaces), every, f"pieces {model!r} {sorted(spaces)}")
        tokens = [spaces.get(index, token) for index, token in enumerate(tokens)] if spaces else tokens
        return Vocabulary(tokens, types, self.path, "tokenizer.ggml.tokens")

    def _large(self, tokens: StringArray, types: bytes, identity: str) -> Vocabulary:
        """A large vocabulary. It is checked and indexed only once, because this takes longer than all other steps."""
        place = parsed_cache.cache_name(identity.encode(), types, tokens.encoded)
        if (cached := parsed_cache.read(place)) is not None:
            return Vocabulary.checked(tokens, types, PieceIds(tokens, cached))
        vocabulary = Vocabulary(tokens, types, self.path, "tokenizer.ggml.tokens")
        if (table := PieceIds.to_cache(vocabulary.tokens)) is not None:
            parsed_cache.write(place, table)
        return Vocabulary.checked(tokens, types, vocabulary.ids)

    def added_tokens(self, vocabulary: Vocabulary, mask_lstrip: bool = False) -> AddedTokens:
        """Control and user-defined tokens, matched in the raw text.

        With ``mask_lstrip`` the mask token includes the white space before it.
        """
        kinds = (*SPECIAL_TYPES, TokenType.USER_DEFINED)
        mask = self.token_id("mask", vocabulary.size) if mask_lstrip else None
        return AddedTokens(
            AddedToken(
                index, vocabulary.tokens[index], special=vocabulary.types[index] in SPECIAL_TYPES, lstrip=index == mask
            )
            for index in vocabulary.of_type(*kinds)
        )

    def ends(self, vocabulary: Vocabulary) -> frozenset[int]:
        """All ids that end a generation."""
        named = (self.token_id(name, vocabulary.size) for name in ("eos", "eot", "eom"))
        return end_ids(vocabulary, named)

    def separator(self, size: int) -> int | None:
        """The id of the token between two texts. llama.cpp misspells its key."""
        index = self.token_id("seperator", size)
        return self.token_id("separator", size) if index is None else index

    def template(self, vocabulary: Vocabulary, defaults: SpecialTokenDefaults) -> Template:
        """BOS, EOS and the separator as the file specifies.

        A separator stands between two texts after EOS, as in RoBERTa: ``<s> A </s></s> B </s>``.
        """

        def added(name: str, index: int | None, default: bool) -> list[int]:
            if not self.get(f"ggml.add_{name}_token", bool, default and index is not None):
                return []
            if index is None:
                raise self.wrong(f"add_{name}_token", f"set, but {name}_token_id is missing")
            return [index]

        size = vocabulary.size
        bos = added("bos", self.token_id("bos", size), defaults.bos)
        eos = added("eos", self.token_id("eos", size), defaults.eos)
        separator = self.separator(size)
        between = added("sep", eos[0] if separator is None and eos else separator, defaults.sep and bool(bos and eos))
        return Template.around(bos, eos, between)

    def shared(
        self, vocabulary: Vocabulary, defaults: SpecialTokenDefaults, handled: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The arguments of :class:`Tokenizer` that every kind reads in the same way.

        ``defaults`` are the kind's special tokens around texts. ``handled`` are the settings that the kind reads
        itself. Other settings would be ignored, so they raise :class:`UnsupportedModel` if they are set.
        """
        settings = ("remove_extra_whitespaces", "precompiled_charsmap")
        for key in settings:
            value = self._metadata.get(f"tokenizer.ggml.{key}")
            unset = value is None or value is False or (hasattr(value, "__len__") and not len(value))
            if key not in handled and not unset:
                raise UnsupportedModel(f"{self.path.name}: tokenizer.ggml.{key} is not implemented for this kind")
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        names |= {"cls_token": "cls", "mask_token": "mask"}
        ids = {name: self.token_id(key, vocabulary.size) for name, key in names.items()}
        ids["sep_token"] = self.separator(vocabulary.size)
        return {
            "vocabulary": vocabulary,
            "added": self.added_tokens(vocabulary, defaults.mask_lstrip),
            "normalized_added": AddedTokens(()),
            "post_processor": self.template(vocabulary, defaults),
            "bos_id": ids["bos_token"],
            "eos_ids": self.ends(vocabulary),
            "chat_template": self.get("chat_template", str),
            "named_tokens": {name: vocabulary.tokens[i] for name, i in ids.items() if i is not None},
        }


def end_ids(vocabulary: Vocabulary, named: Iterable[int | None]) -> frozenset[int]:
    """The ids in ``named``, and the ids of the control tokens in END_OF_GENERATION."""
    known = (vocabulary.ids.get(token) for token in END_OF_GENERATION)
    special = (index for index in known if index in vocabulary.special_ids)
    return frozenset(index for index in (*named, *special) if index is not None)
