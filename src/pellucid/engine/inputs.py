"""Checks user input (a text, a conversation or sentences), and turns it into token ids.

The checks need a model's spec and tokenizer, but no weights and no kernels. So an invalid request is refused before
weights and kernels are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct

from pellucid.engine.encoder_input import EncoderInput
from pellucid.errors import ContextOverflow, InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.model.outputs import Task
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.chat.conversation import is_message
from pellucid.tokenize.encoding import Encoding, Side, Truncation
from pellucid.util import checks
from pellucid.util.checks import token_id

Refusal: TypeAlias = Callable[[str], ContextOverflow]
Message: TypeAlias = Mapping[str, Any]
PromptInput: TypeAlias = str | Sequence[Message] | Sequence[int]

# Only the beginning of a long text is encoded first, to detect a text that is far too long. The beginning has this many
# characters per token of the context.
PROBED = 8
# Margin, because a cut inside a word adds tokens. The beginning has PROBED * context + SLACK characters; the text is
# too long if they make more than 2 * context + SLACK tokens.
SLACK = 1024


class TaskWords(NamedTuple):
    """What a model of a task makes, the method that makes it, and an example of a model."""

    output: str
    method: str
    example: str


TASKS: Mapping[Task, TaskWords] = {
    "generate": TaskWords("text", "generate", "smollm2"),
    "embed": TaskWords("sentence vectors", "embed", "minilm"),
    "sparse": TaskWords("sparse vectors", "sparse", "a SPLADE model"),
    "tokens": TaskWords("a vector for each token", "token_vectors", "a ColBERT model"),
    "classify": TaskWords("scores of labels", "classify", "a model with a classification head"),
    "tag": TaskWords("labels of tokens", "tag", "a model with a token classification head"),
    "answer": TaskWords("answers from a text", "answer", "a model with a question answering head"),
    "fill": TaskWords("tokens for masks", "fill", "a masked language model"),
    "decide": TaskWords("decisions", "decide", "a decision model"),
}
"""Words of messages by task."""


class Inputs(Struct, frozen=True):
    """Converts prompts and sentences for one model. ``context`` limits the tokens of prompt and answer together.

    In an encoder-decoder, a prompt is a source for the encoder. ``context`` limits source and answer separately.

    ``why_base`` is the reason why the model is a base model, which continues text; "" for an instruct model, which
    answers messages (``tokenize/instruct.py``). ``cut`` is the end at which a text that is too long is truncated.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    context: int
    why_base: str = ""
    cut: Side = "right"

    @property
    def vocabulary(self) -> int:
        """Number of tokens that both the tokenizer and the model have. Ids in a request must be below this number.

        A model's embedding matrix may have padding rows. A tokenizer may have tokens that only other models use.
        """
        return min(self.spec.embedding.vocabulary, self.tokenizer.vocab_size)

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

        holds = "" if self.spec.encoder else " and must hold the answer too"

        def refused(length: str) -> ContextOverflow:
            return ContextOverflow(
                f"the prompt is too long: {length}; the context is {self.context:,}{holds}: shorten the prompt"
                f"{self._remedy()}"
            )

        ids = self._checked_ids(prompt, None if any_length else refused, variables, task)
        if len(ids) + (not self.spec.encoder) > self.context and not any_length:
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

    def sentences(self, texts: Sequence[str], truncate: bool = False, prompt: str = "") -> list[list[int]]:
        """The token ids of each text, for an encoder. ``prompt`` is put before each text (``prompt_of``).

        Raises:
            InvalidRequest: there are no texts, a text is empty, or the model generates text.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        self._refuse_language_model()
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or not texts:
            raise InvalidRequest("embed takes a list of at least one text")
        before = self.prompt_of(prompt)
        return [self._sentence(text, truncate, before) for text in texts]

    def texts(self, texts: Sequence[str | tuple[str, str]], truncate: bool = False) -> list[EncoderInput]:
        """The token ids and types of texts and of pairs of texts. Errors as ``sentences`` and ``pairs``."""
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or not texts:
            raise InvalidRequest("classify takes a list of at least one text, or pair of texts")
        return [
            EncoderInput(self._sentence(text, truncate))
            if isinstance(text, str)
            else self._pair(text, truncate)
            for text in texts
        ]

    def prompt_of(self, prompt: str) -> str:
        """The text of a prompt: the text of a name in ``spec.prompts``, or the prompt itself.

        Raises:
            InvalidRequest: a word without a space is no name of a prompt.
        """
        prompts = {"": "", **dict(self.spec.prompts)}
        if prompt in prompts:
            return prompts[prompt]
        if " " not in prompt and ":" not in prompt:
            known = ", ".join(shown(name) for name in prompts if name) or "none"
            raise InvalidRequest(
                f"prompt={brief(prompt)}: the model has no prompt of this name (known: {known}); a text with a "
                "space or a colon is used as it is"
            )
        return prompt

    def sentence_ids(self, ids: Sequence[int]) -> list[int]:
        """Check the token ids of a text for an encoder, and return them as a list.

        Raises:
            InvalidRequest: an id is outside the vocabulary, or the model generates text.
            ContextOverflow: the ids do not fit into the context.
        """
        self._refuse_language_model()
        if len(ids) > self.context:
            raise self._too_long(f"{len(ids):,} tokens")
        return self._in_vocabulary("input", ids)

    def _refuse_language_model(self) -> None:
        if self.spec.generates:
            self.check_task("embed")

    def pairs(self, pairs: Sequence[tuple[str, str]], truncate: bool = False) -> list[EncoderInput]:
        """The token ids and types of pairs of texts.

        With ``truncate``, the longer text of a pair is cut first.

        Raises:
            InvalidRequest: an element is not a pair of texts.
            ContextOverflow: a pair is longer than the context and ``truncate`` is off.
        """
        return [self._pair(pair, truncate) for pair in pairs]

    def _pair(self, pair: tuple[str, str], truncate: bool) -> EncoderInput:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InvalidRequest(f"pair={brief(pair)}: must be two texts")
        for text in pair:
            checks.text("text", text)
            if not truncate and self._overflows(text, parse_special=True):
                raise self._too_long(f"{len(text):,} characters, more than {self.context:,} tokens")
        first, second = pair
        cut = Truncation(self.context, side=self.cut) if truncate else None
        encoding = self.tokenizer.encode_pair(first, second, parse_special=True, truncation=cut)
        if len(encoding) > self.context:
            raise self._too_long(f"{len(encoding):,} tokens")
        return EncoderInput(self._in_vocabulary("text", encoding.ids), encoding.type_ids)

    def windows(self, question: str, text: str, stride: int) -> list[tuple[EncoderInput, Encoding]]:
        """The windows of a text with a question before each, for extractive answers.

        Windows overlap by ``stride`` tokens.

        Raises:
            InvalidRequest: the question leaves no room for the text.
        """
        checks.text("question", question)
        checks.text("text", text)
        cut = Truncation(self.context, stride=stride, strategy="only_second")
        encoding = self.tokenizer.encode_pair(question, text, truncation=cut)
        return [
            (EncoderInput(self._in_vocabulary("text", window.ids), window.type_ids), window)
            for window in encoding.windows
        ]

    def with_offsets(self, text: str) -> tuple[EncoderInput, Encoding]:
        """The token ids of a text, and the encoding with the characters of each token.

        Raises:
            ContextOverflow: the text is longer than the context.
        """
        checks.text("text", text)
        if self._overflows(text):
            raise self._too_long(f"{len(text):,} characters, more than {self.context:,} tokens")
        encoding = self.tokenizer.encode_with_offsets(text)
        if len(encoding) > self.context:
            raise self._too_long(f"{len(encoding):,} tokens")
        return EncoderInput(self._in_vocabulary("text", encoding.ids)), encoding

    def check_task(self, *tasks: Task) -> None:
        """Refuse a task that the model cannot do. ``tasks`` are the tasks whose models can do it.

        Raises:
            InvalidRequest: the model has another task.
        """
        if self.spec.task not in tasks:
            own, asked = TASKS[self.spec.task], TASKS[tasks[0]]
            by_task = self.spec.generates and tasks[0] in ("embed", "classify")
            raise InvalidRequest(
                f"{shown(self.spec.name)} makes {own.output}, not {asked.output}: use {own.method}, or load "
                f"{asked.example}{f', or this model with task={tasks[0]}' if by_task else ''}"
            )

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

    def _overflows(self, text: str, parse_special: bool = False) -> bool:
        """True if a beginning of the text already has too many tokens. If False, the whole text must be encoded."""
        part = PROBED * self.context + SLACK
        while 2 * part < len(text):
            found = self.tokenizer.encode(text[:part], add_special=False, parse_special=parse_special)
            if len(found) > 2 * self.context + SLACK:
                return True
            part *= 4
        return False

    def _sentence(self, text: str, truncate: bool, before: str = "") -> list[int]:
        checks.text("text", text)
        text = before + text
        if not truncate and self._overflows(text, parse_special=True):
            raise self._too_long(f"{len(text):,} characters, more than {self.context:,} tokens")
        # The text "[MASK]" is encoded as the control token, as in transformers. This is safe, because a sentence has no
        # roles that a control token could forge.
        cut = Truncation(self.context, side=self.cut) if truncate else None
        ids = self._in_vocabulary("text", self.tokenizer.encode(text, parse_special=True, truncation=cut))
        if len(ids) > self.context:
            raise self._too_long(f"{len(ids):,} tokens")
        return ids

    def _too_long(self, length: str) -> ContextOverflow:
        return ContextOverflow(
            f"the text is too long: {length}; the context is {self.context:,} tokens: shorten the text"
            f"{self._remedy()}, or set truncate"
        )

    def _remedy(self) -> str:
        """A second remedy for a text that is too long, or ""."""
        most = self.spec.max_context
        return f", or load with a larger context (up to {most:,})" if self.context < most else ""

    def _ids(self, prompt: PromptInput, variables: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt, str):
            checks.text("text", prompt)
            ids = self.tokenizer.encode(prompt)
        elif not _is_list(prompt):
            raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, chat messages or token ids")
        elif len(prompt) and is_message(prompt[0]):
            ids = self.tokenizer.encode_chat(prompt, **variables)  # type: ignore[arg-type]
        else:
            ids = list(prompt)  # type: ignore[arg-type]
        if not ids:
            raise InvalidRequest("the prompt is empty: give at least one character")
        return self._in_vocabulary("prompt", ids)

    def _in_vocabulary(self, name: str, ids: Sequence[Any]) -> list[int]:
        """Check ids against the vocabulary: a tokenizer may have ids that the model does not have."""
        size = self.vocabulary
        return [i if type(i) is int and 0 <= i < size else token_id(name, i, size) for i in ids]


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
