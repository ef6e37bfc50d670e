"""The tokenizer: text → normalize → pre-tokenize → model → post-process → ids, and ids → decode → text.

Every kind of vocabulary is this one class with other stages in it. The stages are small callables with the
protocols below, so that each can be read, tested and watched by itself; the files that build them for a kind
are in ``kinds/``.

Control tokens in the text of a user are text: only ``parse_special=True`` makes ``<|im_end|>`` the control
token, and :meth:`Tokenizer.encode_chat` does so for the chat template's own words only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

from pellucid.tokenize.added import AddedTokens
from pellucid.tokenize.decode import Decoder, StreamDecoder
from pellucid.tokenize.postprocess import Template
from pellucid.tokenize.vocabulary import Vocabulary

BEGINS, COMPILES = (
    20_000,
    1_000_000,
)  # characters before compiled code encodes; before it is compiled for that


class Normalizer(Protocol):
    """Text → text. ``first`` is true for the piece that starts at the beginning of the whole text."""

    def __call__(self, text: str, first: bool) -> str: ...


class PreTokenizer(Protocol):
    """Normalised text → the pieces that the model sees one by one; nothing merges across their borders."""

    def __call__(self, text: str, first: bool) -> list[str]: ...


class Model(Protocol):
    """One pre-token → ids."""

    def __call__(self, piece: str) -> list[int]: ...


class _Remembered(dict[str, list[int]]):
    """A bounded memory of what the model made of a pre-token."""

    ENTRIES, LONGEST = 1 << 16, 64

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, piece: str) -> list[int]:
        ids = self._model(piece)
        if len(piece) <= self.LONGEST:
            if len(self) >= self.ENTRIES:
                self.clear()
            self[piece] = ids
        return ids


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to ids and back.

    Attributes: ``vocabulary``; ``bos_id`` the id that starts a text, or None; ``eos_ids`` every id that ends a
    generation; ``chat_template`` the Jinja source of the file, or None; ``named_tokens`` what the template
    knows as ``bos_token``, ``eos_token``, …; the rest are the stages in the order in which they run.
    """

    vocabulary: Vocabulary
    added: AddedTokens
    normalized_added: AddedTokens
    normalizer: Normalizer | None
    pre_tokenizer: PreTokenizer | None
    model: Model
    post_processor: Template
    decoder: Decoder
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    _remembered: _Remembered = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_remembered", _Remembered(self.model))

    @property
    def vocab_size(self) -> int:
        """Number of ids, V."""
        return self.vocabulary.size

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of a text.

        ``add_special`` puts the model's own tokens around it (BOS, ``[CLS]`` … ``[SEP]``), as the file says.
        ``parse_special`` recognises control tokens written in the text: for rendered chat templates and for
        nothing that a user typed. Unpaired surrogates become U+FFFD.
        """
        ids = self._encode_text(text, parse_special)
        return self.post_processor.apply(ids)[0] if add_special else ids

    def encode_pair(
        self, first: str, second: str, *, add_special: bool = True, parse_special: bool = False
    ) -> tuple[list[int], list[int]]:
        """Two texts as one sequence (BERT's sentence pairs): (ids, segment of each id)."""
        a, b = self._encode_text(first, parse_special), self._encode_text(second, parse_special)
        return (self.post_processor if add_special else Template()).apply(a, b)

    def _encode_text(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """The way from text to ids on one page; ``mark`` is taken out where control tokens have been found."""
        ids: list[int] = []
        for at, part in enumerate(self.added.split(_without_surrogates(text), parse_special)):
            if isinstance(part, int):
                ids.append(part)
                continue
            normal = part if self.normalizer is None else self.normalizer(part, at == 0)
            for inner, piece in enumerate(self.normalized_added.split(normal, parse_special)):
                if isinstance(piece, int):
                    ids.append(piece)
                    continue
                plain = piece.replace(mark, "") if mark else piece
                first = at == 0 and inner == 0
                ids.extend(self._encode_plain(plain, first))
        return ids

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        """Pre-tokenizer and model; ``first`` says whether the text is the beginning of the whole one.

        The compiled way has the same ids, but it takes some hundredths of a second to begin, and seconds where its
        kernels were never compiled: it is taken once so much text has come that this does not matter.
        """
        known = "_compiled" in self.__dict__ or self._pays(len(text))
        run = self._compiled if known else None
        if run is not None:
            ids: list[int] = run(text)
            return ids
        pieces = [text] if self.pre_tokenizer is None else self.pre_tokenizer(text, first)
        return list(chain.from_iterable(map(self._remembered.__getitem__, pieces)))

    def _pays(self, length: int) -> bool:
        """Whether it is time to encode by compiled code, with ``length`` more characters."""
        if not hasattr(self.model, "kernels"):
            return False
        seen = self.__dict__["_seen"] = self.__dict__.get("_seen", 0) + length
        if seen < BEGINS:
            return False
        from pellucid.kernels.library import shared

        return seen >= COMPILES or shared().kept(self.model.kernels)

    @cached_property
    def _compiled(self) -> Callable[[str], list[int]] | None:
        """Pre-tokenizer and model as compiled code; None if they cannot be."""
        from pellucid.tokenize.pretokenize import as_steps

        steps = as_steps(self.pre_tokenizer)
        return None if steps is None else self.model.compiled(steps)  # type: ignore[attr-defined]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of the ids: the exact inverse of ``encode`` for byte-level vocabularies.

        With byte fallback it is exact too, but for U+2581, which these vocabularies use as the space; a
        WordPiece vocabulary does not keep the white space and the case of its text. ``skip_special`` leaves
        control tokens out. Bytes that are not UTF-8 become U+FFFD. Raises :class:`InvalidRequest` for an id
        outside the vocabulary.
        """
        stream = self.stream(skip_special=skip_special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        skip = self.vocabulary.special_ids if skip_special else frozenset()
        return StreamDecoder(self.decoder, self.vocab_size, skip)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id adds to a text. Raises :class:`InvalidRequest` for an unknown id."""
        return self.decoder.piece(self.vocabulary.check(token_id), False)

    def token_text(self, token_id: int) -> str:
        """The piece as the file spells it ("Ġthe", "▁the", "##ing"). Raises :class:`InvalidRequest` likewise."""
        return self.vocabulary.tokens[self.vocabulary.check(token_id)]

    def id_of(self, token: str) -> int | None:
        """The id of a piece as the file spells it, or None."""
        return self.vocabulary.ids.get(token)

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token. Raises :class:`InvalidRequest` for an unknown id."""
        return self.vocabulary.check(token_id) in self.vocabulary.special_ids

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as one text, made by the template of the file.

        The text holds its own BOS where the model wants one: encode it with ``add_special=False,
        parse_special=True``, or use :meth:`encode_chat`. Raises :class:`TemplateError` when there is no
        template or it fails.
        """
        from pellucid.tokenize.template import render

        return render(
            self.chat_template,
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **{**self.named_tokens, **variables},
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The ids of a conversation: control tokens from the template, never from what a user wrote.

        Nothing is added around the rendered text, so BOS is not doubled. Control tokens written inside a
        message stay text, except in the messages of the assistant, which the model itself wrote.
        """
        from pellucid.tokenize.template import guard

        guarded, mark = guard(messages, [self.token_text(index) for index in self.vocabulary.special_ids])
        text = self.apply_chat_template(
            guarded, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )
        return self._encode_text(text, True, mark)


def _without_surrogates(text: str) -> str:
    """The text with unpaired surrogates, which no UTF-8 can hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
