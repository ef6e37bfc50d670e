"""The tokenizer: text → normalize → pre-tokenize → model → post-process → ids, and ids → decode → text.

One class serves every kind of vocabulary; only the stages differ. A stage is a small object that can be read, tested
and observed by itself. The files in ``kinds/`` build the stages of each kind.

A control token that a user's text spells out, such as ``<|im_end|>``, is encoded as ordinary text. Only with
``parse_special=True`` it becomes the control token. :meth:`Tokenizer.encode_chat` parses control tokens only in the
text that the chat template itself writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.tokenize.encoder import Encoder
from pellucid.tokenize.encoding import Encoding, Padding, Truncation, combined
from pellucid.tokenize.stages.characters import CharacterGroup, CharacterGrouper, groups
from pellucid.tokenize.stages.decode import PieceBytes, StreamDecoder
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.token_table import TokenTable
from pellucid.util import checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pellucid.tokenize.compiled_encoder import CompiledEncoder
    from pellucid.tokenize.explain import Explanation

CHARACTERS_BEFORE_CACHED, CHARACTERS_BEFORE_COMPILING = 20_000, 1_000_000
"""Characters to encode before cached compiled kernels are used, and before missing kernels are compiled."""

Pair = tuple[str, str]
"""Two texts that form one sequence (BERT's sentence pairs)."""


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer(Encoder):
    """Text to ids and back.

    Attributes: ``vocabulary``; ``bos_id``: the id that starts a text, or None; ``eos_ids``: all ids that end a
    generation; ``chat_template``: the Jinja source from the file, or None; ``named_tokens``: the template's variables
    ``bos_token``, ``eos_token``, …; ``truncation`` and ``padding``: the file's settings, which apply only if the caller
    passes them to an encoding method. All other attributes are stages (``Encoder``).
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    truncation: Truncation | None = None
    padding: Padding | None = None

    def __repr__(self) -> str:
        return (
            f"Tokenizer({type(self.model).__name__}, V={self.vocab_size:,}, bos_id={self.bos_id}, "
            f"eos_ids={sorted(self.eos_ids)}, chat template: {'yes' if self.chat_template else 'no'})"
        )

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the ids of a text.

        ``add_special`` adds the model's special tokens around it (BOS, ``[CLS]`` … ``[SEP]``), as the file specifies.
        ``parse_special`` recognises control tokens in the text: use it for rendered chat templates, never for user
        input. Unpaired surrogates become U+FFFD.
        """
        ids = self._encode_text(checks.string("text", text), parse_special)
        return self.post_processor.ids(ids) if add_special else ids

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        threads: int | None = None,
    ) -> list[list[int]]:
        """``encode`` each text, on ``threads`` threads (None: one per physical core)."""
        compiled = self._compiled_for(sum(map(len, checks.strings("texts", texts))))
        if compiled is None:
            ids = [self._encode_text(text, parse_special) for text in texts]
        else:
            ids = compiled.over_threads(compiled.lists, texts, parse_special, threads)
        return list(map(self.post_processor.ids, ids)) if add_special else ids

    def encode_arrays(
        self,
        texts: Sequence[str],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        threads: int | None = None,
    ) -> list[NDArray[np.int32]]:
        """``encode_batch`` with an array of int32 for each text.

        It is much faster than ``encode_batch`` for many texts: a list needs a Python object for every id, and threads
        cannot create Python objects in parallel.
        """
        import numpy as np

        compiled = self._compiled_for(sum(map(len, checks.strings("texts", texts))))
        if compiled is None:
            ids = [np.array(self._encode_text(text, parse_special), np.int32) for text in texts]
        else:
            ids = compiled.over_threads(compiled.encode, texts, parse_special, threads)
        return list(map(self.post_processor.array, ids)) if add_special else ids

    def encode_with_offsets(
        self,
        text: str | Pair,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        truncation: Truncation | None = None,
    ) -> Encoding:
        """Return the ids of a text or of a pair of texts, with offsets and further data for each id.

        Otherwise like ``encode``. Offsets equal the offsets of Hugging Face ``tokenizers``. Raises
        :class:`InvalidRequest` for a truncation that leaves no room for text.
        """
        first, second = (text, None) if isinstance(text, str) else _pair(text)
        template = self.post_processor if add_special else self.post_processor.plain
        tokens = self._tokens(first, parse_special)
        others = None if second is None else self._tokens(second, parse_special)
        windows: tuple[list[TokenTable], list[TokenTable] | None]
        windows = [tokens], None if others is None else [others]
        if truncation is not None:
            windows = truncation.windows(tokens, others, template.added(second is not None))
        encodings = [self._encoding(template, *texts) for texts in combined(*windows)]
        return replace(encodings[0], overflowing=tuple(encodings[1:]))

    def encode_batch_with_offsets(
        self,
        texts: Sequence[str | Pair],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        truncation: Truncation | None = None,
        padding: Padding | None = None,
    ) -> list[Encoding]:
        """``encode_with_offsets`` each text, padded to one length if ``padding`` is given."""
        made = [
            self.encode_with_offsets(
                text, add_special=add_special, parse_special=parse_special, truncation=truncation
            )
            for text in texts
        ]
        return made if padding is None else padding(made)

    def explain(self, text: str, *, parse_special: bool = False) -> Explanation:
        """The path from a text to ids, stage by stage, as ``pellucid tokenize --explain`` shows it."""
        from pellucid.tokenize.explain import explain

        text = checks.string("text", text)
        return explain(
            self, text, parse_special, self.encode_with_offsets(text, parse_special=parse_special).tokens
        )

    def _encoding(self, template: Template, first: TokenTable, second: TokenTable | None) -> Encoding:
        for trim in self.trims:
            first, second = trim(first), None if second is None else trim(second)
        return Encoding(template.tokens(first, second, self.vocabulary.tokens))

    def _tokens(self, text: str, parse_special: bool) -> TokenTable:
        """The aligned path from text to tokens."""
        names, compiled = self.vocabulary.tokens, self._compiled_for(len(text))
        columns = None if compiled is None else compiled.spans(text, parse_special)
        ids, starts, stops = columns or list(zip(*self.spans(text, parse_special))) or ((), (), ())
        return TokenTable.of_text(ids, names, starts, stops)

    def _encode_text(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """The plain path from text to ids, or the compiled path; ``mark`` as in ``Encoder.ids``."""
        if not mark and (compiled := self._compiled_for(len(text))) is not None:
            return compiled.lists([text], parse_special)[0]
        return self.ids(text, parse_special, mark)

    def _compiled_for(self, length: int) -> CompiledEncoder | None:
        """Count ``length`` characters as encoded. Return the compiled encoder if it exists and enough text was encoded.

        The compiled encoder returns the same ids, but takes some hundredths of a second to start. So it is used only
        after the tokenizer has encoded ``CHARACTERS_BEFORE_CACHED`` characters. Kernels that have never been compiled
        are compiled in another process.
        """
        if "_compiled" in self.__dict__:
            return self._compiled
        seen = self.__dict__["_seen"] = self.__dict__.get("_seen", 0) + length
        if seen < CHARACTERS_BEFORE_CACHED:
            return None
        from pellucid.tokenize.compiled_encoder import is_ready

        ready = is_ready(self.model, compiles=seen >= CHARACTERS_BEFORE_COMPILING)
        return self._compiled if ready else None

    @cached_property
    def _compiled(self) -> CompiledEncoder | None:
        """The compiled encoder, or None if the stages have no compiled form."""
        from pellucid.tokenize.compiled_encoder import compiled_encoder

        return compiled_encoder(self)

    def piece(self, token: int) -> str:
        """The text of a single token, which may be a control token. A byte that is no character becomes ``<0xE4>``."""
        return self.grouper().push(token).text

    def grouper(self) -> CharacterGrouper:
        """A new grouper of ids into characters; the ids arrive one at a time."""
        return CharacterGrouper(self.decoder, self.vocab_size)

    def characters(self, ids: Sequence[int]) -> list[CharacterGroup]:
        """The characters of a sequence of ids: groups of ids that share characters, with their text."""
        return groups(self.grouper(), ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of the ids.

        ``skip_special`` leaves out control tokens. Bytes that are not UTF-8 become U+FFFD. Raises
        :class:`InvalidRequest` for an id outside the vocabulary. For byte-level vocabularies without a normalizer,
        ``decode`` is the exact inverse of ``encode`` if no special token is among the ids. With byte fallback it is
        exact except for U+2581, which these vocabularies use as the space. WordPiece vocabularies lose white space and
        case.
        """
        return self._pieces[skip_special].text(ids)

    @cached_property
    def _pieces(self) -> dict[bool, PieceBytes]:
        """The bytes of ids: True without control tokens, False with control tokens."""
        skipped = {True: self.vocabulary.special_ids, False: frozenset[int]()}
        return {key: PieceBytes(self.decoder, self.vocab_size, skip) for key, skip in skipped.items()}

    def stream(self, *, skip_special: bool = True, skip: frozenset[int] | None = None) -> StreamDecoder:
        """A decoder for ids that arrive one at a time. ``skip``, if given, are the ids to leave out."""
        if skip is None:
            skip = self.vocabulary.special_ids if skip_special else frozenset()
        return StreamDecoder(self.decoder, self.vocab_size, skip)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """Render a conversation to one text with the file's chat template.

        ``messages`` are mappings of texts, numbers, lists and mappings, or instances of dataclasses or pydantic models.
        ``tools`` are JSON schemas. Keys of a message whose value is None are left out.

        The text includes BOS if the model needs it: encode it with ``add_special=False, parse_special=True``, or use
        :meth:`encode_chat`. Raises :class:`TemplateError` if there is no template or the template fails,
        :class:`InvalidRequest` for messages or variables of other types.
        """
        from pellucid.tokenize.chat.conversation import conversation

        return self._rendered(conversation(messages), add_generation_prompt, tools, variables)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Return the ids of a conversation. Control tokens come from the template, never from a user's text.

        No tokens are added around the rendered text, so BOS is not doubled. Control tokens inside a message stay text,
        except in the assistant's messages, which the model itself wrote. With ``continue_final_message``, the ids end
        at the end of the last message's content, so that the model continues this message. Other arguments and errors
        are as in ``apply_chat_template``.
        """
        from pellucid.tokenize.chat.conversation import conversation, guard, text_before, with_end_mark

        guarded, mark = guard(conversation(messages), self.vocabulary.special_tokens)
        if not continue_final_message:
            text = self._rendered(guarded, add_generation_prompt, tools, variables)
        else:
            guarded, end = with_end_mark(guarded)
            text = text_before(end, self._rendered(guarded, False, tools, variables))
        return self._encode_text(text, True, mark)

    def encode_template(self, source: str, variables: Mapping[str, Any]) -> list[int]:
        """Return the ids of the Jinja template ``source``, rendered with ``variables`` of plain values.

        Control tokens come from the template, never from the variables. No tokens are added around the text.

        Raises: as ``apply_chat_template``.
        """
        (ids,), _ = self.encode_marked(source, variables, ())
        return ids

    def encode_marked(
        self, source: str, variables: Mapping[str, Any], marks: Sequence[str]
    ) -> tuple[list[list[int]], list[str]]:
        """As ``encode_template`` for a template that writes ``marks``, such as "<|mark|>", which are no tokens.

        Returns the ids of the parts of the text between the marks, and the marks. The variables cannot forge marks.
        """
        from pellucid.tokenize.chat.conversation import guard_values, template_variables
        from pellucid.tokenize.chat.template import render

        control_tokens = [*self.vocabulary.special_tokens, *marks]
        guarded, mark = guard_values(template_variables(variables), control_tokens)
        text = render(source, {**self.named_tokens, **guarded})
        pattern = "|".join(map(re.escape, marks)) or "(?!)"
        parts = re.split(pattern, text)
        return [self._encode_text(part, True, mark) for part in parts], re.findall(pattern, text)

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Any] | None,
        variables: Mapping[str, Any],
    ) -> str:
        from pellucid.tokenize.chat.conversation import template_variables
        from pellucid.tokenize.chat.template import render

        prompt = {"add_generation_prompt": add_generation_prompt, "tools": tools}
        values = template_variables({**self.named_tokens, "documents": None, **variables, **prompt})
        return render(self.chat_template, {**values, "messages": messages})


def _pair(text: Any) -> Pair:
    """The two texts of a pair. Raises :class:`InvalidRequest` for other values."""
    if not isinstance(text, (tuple, list)) or len(text) != 2:
        raise InvalidRequest(f"text={brief(text)}: must be a text, or a pair of texts")
    return checks.string("text[0]", text[0]), checks.string("text[1]", text[1])
