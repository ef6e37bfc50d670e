"""The tokenizer: text → normalize → pre-tokenize → model → post-process → ids, and ids → decode → text.

One class serves every kind of vocabulary; only the stages differ. A stage is a small object that can be read, tested
and observed by itself. The files in ``kinds/`` build the stages of each kind.

A control token that a user's text spells out, such as ``<|im_end|>``, is encoded as ordinary text. Only with
``parse_special=True`` it becomes the control token. :meth:`Tokenizer.encode_chat` parses control tokens only in the
text that the chat template itself writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest, brief
from pellucid.tokenize.encoding import Padding, Truncation
from pellucid.tokenize.stages.decode import CharacterGroup, CharacterGrouper, PieceBytes, StreamDecoder, groups
from pellucid.tokenize.text_encoder import TextEncoder
from pellucid.util import checks

if TYPE_CHECKING:
    from pellucid.tokenize.explain import Explanation


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer(TextEncoder):
    """Text to ids and back.

    Attributes: ``vocabulary``; ``bos_id``: the id that starts a text, or None; ``eos_ids``: all ids that end a
    generation; ``chat_template``: the Jinja source from the file, or None; ``named_tokens``: the template's variables
    ``bos_token``, ``eos_token``, …; ``truncation`` and ``padding``: the file's settings, which apply only if the caller
    passes them to an encoding method; ``languages``: the id of each language's token in a translation model, by code;
    ``source_language``: the code whose token is around texts; ``target``: the tokenizer of the text that the model
    writes, if it differs; ``gives_types``: False if the model reads pairs of texts without the types of their tokens
    (``model_input_names`` of transformers). All other attributes are stages (``Encoder``).
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    truncation: Truncation | None = None
    padding: Padding | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    source_language: str | None = None
    target: Tokenizer | None = None
    gives_types: bool = True

    def __repr__(self) -> str:
        return (
            f"Tokenizer({type(self.model).__name__}, V={self.vocab_size:,}, bos_id={self.bos_id}, "
            f"eos_ids={sorted(self.eos_ids)}, chat template: {'yes' if self.chat_template else 'no'})"
        )

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token, which a masked language model fills in; None if the file names none."""
        return self.vocabulary.ids.get(self.named_tokens.get("mask_token", ""))

    def language_id(self, code: str) -> int:
        """The id of a language's token, the first that a model writes to translate into this language.

        Raises :class:`InvalidRequest` for a language that the model does not have.
        """
        if code not in self.languages:
            known = ", ".join(self.languages) or "none: the tokenizer has no language tokens"
            raise InvalidRequest(f"language {brief(code)} is not known; known are {known}")
        return self.languages[code]

    def with_source_language(self, code: str) -> Tokenizer:
        """This tokenizer with the token of another source language around texts.

        Raises :class:`InvalidRequest` for a language that the model does not have, or if a model has no token for the
        source language.
        """
        new = self.language_id(code)
        if self.source_language is None:
            raise InvalidRequest("the tokenizer has no token for the source language: leave it out")
        template = self.post_processor.with_token(self.languages[self.source_language], new)
        found = replace(self, source_language=code, post_processor=template)
        # All other stages are the same, so the copy shares their compiled code.
        found.__dict__.update({key: self.__dict__[key] for key in ("_compiled", "_seen") if key in self.__dict__})
        return found

    def explain(self, text: str, *, parse_special: bool = False) -> Explanation:
        """The path from a text to ids, stage by stage, as ``pellucid tokenize --explain`` shows it."""
        from pellucid.tokenize.explain import explain

        text = checks.string("text", text)
        return explain(self, text, parse_special, self.encode_with_offsets(text, parse_special=parse_special).tokens)

    def piece(self, token: int) -> str:
        """The text of a single token, which may be a control token. A byte that is no character becomes ``<0xE4>``."""
        return self.grouper().push(token).text

    def grouper(self) -> CharacterGrouper:
        """A new grouper of ids into characters; the ids arrive one at a time."""
        return CharacterGrouper(self.decoder, self.vocab_size)

    def characters(self, ids: Iterable[int]) -> list[CharacterGroup]:
        """The characters of a sequence of ids: groups of ids that share characters, with their text."""
        return groups(self.grouper(), checks.items("ids", ids, "token ids"))

    def decode(self, ids: int | Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of the ids, or of one id.

        ``skip_special`` leaves out control tokens. Bytes that are not UTF-8 become U+FFFD. Raises
        :class:`InvalidRequest` for an id outside the vocabulary. For byte-level vocabularies without a normalizer,
        ``decode`` is the exact inverse of ``encode`` if no special token is among the ids. With byte fallback it is
        exact except for U+2581, which these vocabularies use as the space. WordPiece vocabularies lose white space and
        case.
        """
        listed: list[Any] = [ids] if checks.is_whole(ids) else list(checks.items("ids", ids, "token ids"))
        return self._pieces[skip_special].text(listed)

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

    def encode_filled(self, template: str, texts: Mapping[str, str]) -> list[int]:
        """Return the ids of a template in which {name} stands for the text ``texts[name]``.

        Control tokens come from the template, never from a text. Special tokens are added around the filled template as
        in ``encode``.
        """
        places = re.compile("|".join(re.escape(f"{{{name}}}") for name in texts))

        def fill(guarded: list[str]) -> str:
            own = dict(zip(texts, guarded))
            return places.sub(lambda place: own[place[0][1:-1]], template)

        (ids,), _ = self._encode_guarded(list(texts.values()), fill)
        return self.post_processor.ids(ids)

    def encode_template(
        self,
        source: str,
        variables: Mapping[str, Any],
        marks: Sequence[str] = (),
        given: Mapping[str, str] | None = None,
    ) -> tuple[list[list[int]], list[str]]:
        """Return the ids of the Jinja template ``source``, rendered with ``variables`` of plain values.

        The template may write ``marks``, such as "<|mark|>", which are no tokens. The result is the ids of the parts of
        the text between the marks, and the marks. Control tokens and marks come from the template, or from the
        variables in ``given``, never from the other variables. No tokens are added around the text.

        Raises: as ``apply_chat_template``.
        """
        from pellucid.tokenize.chat.conversation import template_variables
        from pellucid.tokenize.chat.template import render

        def fill(guarded: dict[str, Any]) -> str:
            return render(source, {**self.named_tokens, **guarded, **(given or {})})

        return self._encode_guarded(template_variables(variables), fill, marks)

    def _encode_guarded(
        self, values: Any, fill: Callable[[Any], str], marks: Sequence[str] = ()
    ) -> tuple[list[list[int]], list[str]]:
        """The ids of the parts of a filled template between ``marks``, and the marks. ``values`` forge neither."""
        from pellucid.tokenize.chat.conversation import guard_values

        guarded, mark = guard_values(values, [*self.vocabulary.special_tokens, *marks])
        text, pattern = fill(guarded), "|".join(map(re.escape, marks)) or "(?!)"
        return [self._encode_text(part, True, mark) for part in re.split(pattern, text)], re.findall(pattern, text)

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
