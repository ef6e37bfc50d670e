"""Checks user input (a text, a conversation or sentences), and turns it into token ids.

The checks need a model's spec and tokenizer, but no weights and no kernels. So an invalid request is refused before
weights and kernels are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pellucid.engine.encoder_inputs import EncoderInputs
from pellucid.errors import ContextOverflow, InvalidRequest, brief, shown
from pellucid.model.outputs import Task
from pellucid.tokenize.chat.conversation import is_message
from pellucid.util import checks

Refusal: TypeAlias = Callable[[str], ContextOverflow]
Message: TypeAlias = Mapping[str, Any]
PromptInput: TypeAlias = str | Sequence[Message] | Sequence[int]


class Inputs(EncoderInputs, frozen=True):
    """Converts prompts and the texts of encoders for one model.

    ``context`` limits the tokens of prompt and answer together. In an encoder-decoder, a prompt is a source for the
    encoder, and ``context`` limits source and answer separately.

    ``why_base`` is the reason why the model is a base model, which continues text; "" for an instruct model, which
    answers messages (``tokenize/load.py``).
    """

    why_base: str = ""

    def prompt(
        self,
        prompt: PromptInput,
        variables: Mapping[str, Any] | None = None,
        *,
        any_length: bool = False,
        task: Task = "generate",
    ) -> list[int]:
        """The token ids of a prompt for a model that generates text. The prompt is a text, chat messages or token ids.

        ``variables`` are further variables of the chat template, such as ``tools``. With ``any_length`` the prompt may
        exceed the context, because the caller only counts its tokens. ``task`` is the task that the prompt is for.

        Raises:
            InvalidRequest: the prompt is empty, an id is outside the vocabulary, or the model does not generate text.
            ContextOverflow: the context has no tokens left for an answer. Not raised with ``any_length``.
            TemplateError: the chat template is missing or fails.
        """

        answers = not self.spec.encoder and not self.spec.in_one_step and self.spec.task != "decide"
        holds = " and must hold the answer too" if answers else ""

        def refused(length: str) -> ContextOverflow:
            return ContextOverflow(
                f"the prompt is too long: {length}; the context is {self.context:,}{holds}: shorten the prompt"
                f"{self._remedy()}"
            )

        ids = self._checked_ids(prompt, None if any_length else refused, variables, task)
        if len(ids) + answers > self.context and not any_length:
            raise refused(f"{len(ids):,} tokens")
        return ids

    def decoder_prompt(self, ids: list[int], answered: Sequence[int] = ()) -> list[int]:
        """The tokens that the decoder reads before it generates: the prompt, or the first tokens of an encoder-decoder.

        ``answered`` are tokens of the answer that follow.

        Raises:
            ContextOverflow: the context has no tokens left for an answer.
        """
        if not self.spec.encoder:
            return self.prompt([*ids, *answered]) if answered else ids
        own = [*self.spec.start, *self._in_vocabulary("resumed", answered)]
        if len(own) >= self.context:
            raise ContextOverflow(
                f"the answer is too long: {len(own):,} tokens; the context is {self.context:,}: resume it earlier"
            )
        return own

    def answer_limit(self, ids: list[int], wanted: int | None) -> int:
        """Maximum number of tokens of an answer: the rest of the context, at most ``wanted`` (None: no other limit)."""
        left = self.context - len(ids)
        return left if wanted is None else min(left, wanted)

    def target(self, text: PromptInput, given: PromptInput) -> tuple[list[int], list[int], int]:
        """The token ids of a source ``given``, of an answer ``text``, and the number of tokens before the answer.

        The ids of the answer begin with the first tokens of the decoder.

        Raises:
            InvalidRequest: as ``prompt``.
            ContextOverflow: the source or the answer does not fit into the context.
        """
        source, start = self.prompt(given), self.spec.start
        return source, self.decoder_prompt([], self._checked_ids(text)), len(start)

    def corpus(self, text: str) -> list[int]:
        """The token ids of a text. The text may be longer than the context, and must have at least two tokens.

        Raises:
            InvalidRequest: the text has fewer than two tokens, or the model does not generate text.
        """
        if not isinstance(text, str):
            raise InvalidRequest(f"text={brief(text)}: must be a text")
        if self.spec.encoder:
            raise InvalidRequest(
                f"{shown(self.spec.name)} scores answers to a source, not texts: use score(text, given=source)"
            )
        ids = self._checked_ids(text)
        if len(ids) < 2:
            raise InvalidRequest(
                "the text is a single token, and the first token has no probability: give a longer text"
            )
        return ids

    def scored(self, text: PromptInput, given: PromptInput | None) -> tuple[list[int], int]:
        """The token ids of ``given`` + ``text``, and the number of leading ids that are not scored.

        Raises:
            InvalidRequest: no token is left to score, ``given`` is not a text, an id is outside the vocabulary, or the
                model does not generate text.
            ContextOverflow: the ids do not fit into the context.
        """

        def refused(length: str) -> ContextOverflow:
            return ContextOverflow(
                f"the text is too long: {length}; the context is {self.context:,} tokens: shorten the text"
                f"{self._remedy()}, or score the text in windows (pellucid eval perplexity)"
            )

        if given is None:
            ids, unscored = self._checked_ids(text, refused), 1
        elif not isinstance(text, str) or not isinstance(given, str):
            raise InvalidRequest(f"given={brief(given)}: given and text must both be texts")
        else:
            ids = self._checked_ids(given + text, refused)
            ends = [end for _, end in self.tokenizer.encode_with_offsets(given + text).offsets]
            # A token that spans the border between ``given`` and ``text`` is scored, because it contains a part of
            # ``text``.
            unscored = max(sum(end <= len(given) for end in ends), 1) if text else len(ids)
        if len(ids) <= unscored:
            raise InvalidRequest(
                "there is no token to score, and the first token has no probability: give a longer text"
            )
        if len(ids) > self.context:
            raise refused(f"{len(ids):,} tokens")
        return ids, unscored

    def _checked_ids(
        self,
        prompt: PromptInput,
        refused: Refusal | None = None,
        variables: Mapping[str, Any] | None = None,
        task: Task = "generate",
    ) -> list[int]:
        self.check_task(task)
        if refused is not None:
            self._refuse_early(prompt, refused)
        return self._ids(prompt, variables or {})

    def _refuse_early(self, prompt: PromptInput, refused: Refusal) -> None:
        """Raise ``refused(length)`` if a part of the prompt already shows that the prompt is too long."""
        texts = [prompt] if isinstance(prompt, str) else []
        if not texts and _is_list(prompt) and (length := _length(prompt)):
            if is_message(prompt[0]):
                contents = (one.get("content") for one in prompt if isinstance(one, Mapping))
                texts = [content for content in contents if isinstance(content, str)]
            elif length > self.context:
                raise refused(f"{length:,} tokens")
        for text in texts:
            if self._overflows(text):
                raise refused(f"{len(text):,} characters, more than {self.context:,} tokens")

    def _ids(self, prompt: PromptInput, variables: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt, str):
            checks.text("text", prompt)
            ids = self.tokenizer.encode(prompt)
        elif several(prompt) is not None:
            raise InvalidRequest(
                f"prompt={brief(prompt)}: several prompts where one is taken: give one of them, or use generate"
            )
        elif not _is_list(prompt):
            raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, chat messages or token ids")
        elif len(prompt) and is_message(prompt[0]):
            ids = self.tokenizer.encode_chat(prompt, **variables)  # type: ignore[arg-type]
        else:
            ids = list(prompt)  # type: ignore[arg-type]
        if not ids:
            raise InvalidRequest("the prompt is empty: give at least one character")
        return self._in_vocabulary("prompt", ids)


def several(prompt: PromptInput | Sequence[PromptInput]) -> Sequence[PromptInput] | None:
    """The prompts if the input is a list of prompts; None if it is a single prompt."""
    if not _is_list(prompt) or not len(prompt):
        return None
    first = prompt[0]
    of_one = is_message(first) or not (isinstance(first, str) or _is_list(first))
    return None if of_one else prompt  # type: ignore[return-value]


def _is_list(value: Any) -> bool:
    """True if a value can hold messages or token ids."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _length(value: Any) -> int:
    try:
        return len(value)
    except OverflowError:  # a range that is too long for len()
        return sys.maxsize
