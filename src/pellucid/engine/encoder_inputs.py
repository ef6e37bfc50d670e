"""The input of an encoder: checks texts, and turns them into token ids and types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct

from pellucid.errors import ContextOverflow, InvalidRequest, brief, shown
from pellucid.model.outputs import Task
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.encoding import Encoding, Side, Truncation
from pellucid.util import checks
from pellucid.util.checks import token_id


class EncoderInput(Struct, frozen=True):
    """The token ids of a text or of a pair of texts, and the types of the tokens (None: all 0).

    If the model does not pool, the outputs are rows of the tokens from ``first_output`` on.
    """

    ids: list[int]
    types: list[int] | None = None
    first_output: int = 0


# Checks the texts of an encoder, and turns them into token ids and types. ``inputs.py`` adds prompts.

# Only the beginning of a long text is encoded first, to detect a text that is far too long. The beginning has this many
# characters per token of the context.
PROBED = 8
# Margin, because a cut inside a word adds tokens. The beginning has PROBED * context + SLACK characters; the text is
# too long if they make more than 2 * context + SLACK tokens.
SLACK = 1024

Texts: TypeAlias = str | Iterable[str]
TextsOrPairs: TypeAlias = str | Iterable[str | tuple[str, str]]


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


class EncoderInputs(Struct, frozen=True):
    """Converts the texts of an encoder. ``context`` limits the tokens of a text, or of a pair of texts.

    ``cut`` is the end at which a text that is too long is truncated.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    context: int
    cut: Side = "right"

    @property
    def vocabulary(self) -> int:
        """Number of tokens that both the tokenizer and the model have. Ids in a request must be below this number.

        A model's embedding matrix may have padding rows. A tokenizer may have tokens that only other models use.
        """
        return min(self.spec.embedding.vocabulary, self.tokenizer.vocab_size)

    def check_task(self, *tasks: Task, use: str = "", load_as: str = "this model with task=") -> None:
        """Refuse a task that the model cannot do. ``tasks`` are the tasks whose models can do it.

        The message tells to ``use`` another call ("": the method of the model's task) or to load the model for the
        task in the words of ``load_as``.

        Raises:
            InvalidRequest: the model has another task.
        """
        if self.spec.task not in tasks:
            own, asked = TASKS[self.spec.task], TASKS[tasks[0]]
            by_task = self.spec.generates and tasks[0] in ("embed", "classify")
            raise InvalidRequest(
                f"{shown(self.spec.name)} makes {own.output}, not {asked.output}: use {use or own.method}, or load "
                f"{asked.example}{f', or {load_as}{tasks[0]}' if by_task else ''}"
            )

    def sentences(self, texts: Texts, truncate: bool = False, prompt: str = "") -> list[list[int]]:
        """The token ids of each text, for an encoder. ``prompt`` is put before each text (``prompt_of``).

        Raises:
            InvalidRequest: there are no texts, a text is empty, or the model generates text.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        self._refuse_language_model()
        truncate, before = checks.boolean("truncate", truncate), self.prompt_of(prompt)
        return [self._sentence(text, truncate, before) for text in checks.one_or_more("texts", texts)]

    def texts(self, texts: TextsOrPairs, truncate: bool = False) -> list[EncoderInput]:
        """The token ids and types of texts and of pairs of texts. Errors as ``sentences`` and ``pairs``."""
        truncate, before = checks.boolean("truncate", truncate), self.prompt_of("")
        return [
            EncoderInput(self._sentence(text, truncate, before))
            if isinstance(text, str)
            else self.pairs([text], truncate)[0]
            for text in checks.one_or_more("texts", texts, "texts, or pairs of texts")
        ]

    def document(self, text: str, truncate: bool = False) -> list[int]:
        """The token ids of a text that a model of any task only reads, as ``generate`` or ``embed`` would read it.

        Raises:
            InvalidRequest: the text is empty.
            ContextOverflow: the text is longer than the context and ``truncate`` is off.
        """
        if not self.spec.generates:
            return self._sentence(text, truncate)
        checks.text("text", text)
        if not truncate and self._overflows(text):
            raise self._too_long(f"{len(text):,} characters, more than {self.context:,} tokens")
        cut = Truncation(self.context, side=self.cut) if truncate else None
        ids = self._in_vocabulary("text", self.tokenizer.encode(text, truncation=cut))
        if len(ids) > self.context:
            raise self._too_long(f"{len(ids):,} tokens")
        return ids

    def prompt_of(self, prompt: str) -> str:
        """The text of a prompt: the text of a name in ``spec.prompts``, or the prompt itself.

        Raises:
            InvalidRequest: a word without a space is no name of a prompt, or the prompt belongs to an adapter and the
                model is loaded without this adapter.
        """
        checks.string("prompt", prompt)
        if prompt in self.spec.adapters and prompt != self.spec.adapter:
            own = f"the adapter {shown(self.spec.adapter)}" if self.spec.adapter else "no adapter"
            raise InvalidRequest(
                f"prompt={brief(prompt)}: {shown(self.spec.name)} is loaded with {own}: load it with "
                f"adapter={shown(prompt)} for such texts"
            )
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

    def pairs(self, pairs: Sequence[tuple[str, str]], truncate: bool = False, prompt: str = "") -> list[EncoderInput]:
        """The token ids and types of pairs of texts.

        With ``truncate``, the longer text of a pair is cut first. ``prompt`` is put before the first text
        (``prompt_of``). Types are None if the tokenizer gives the model none.

        Raises:
            InvalidRequest: an element is not a pair of texts.
            ContextOverflow: a pair is longer than the context and ``truncate`` is off.
        """
        for pair in pairs:
            self._check_pair(pair, truncate)
        before = self.prompt_of(prompt)
        pairs = [(before + first, second) for first, second in pairs]
        cut = Truncation(self.context, side=self.cut) if truncate else None
        encoded = self.tokenizer.encode_pairs(pairs, parse_special=True, truncation=cut, threads=1)
        for ids, _ in encoded:
            if len(ids) > self.context:
                raise self._too_long(f"{len(ids):,} tokens")
        return [EncoderInput(self._in_vocabulary("text", ids), self._types(types)) for ids, types in encoded]

    def _types(self, types: list[int]) -> list[int] | None:
        return types if self.tokenizer.gives_types else None

    def _check_pair(self, pair: tuple[str, str], truncate: bool) -> None:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InvalidRequest(f"pair={brief(pair)}: must be two texts")
        for text in pair:
            checks.text("text", text)
            if not truncate and self._overflows(text, parse_special=True):
                raise self._too_long(f"{len(text):,} characters, more than {self.context:,} tokens")

    def windows(self, question: str, text: str, stride: int) -> list[tuple[EncoderInput, Encoding]]:
        """The windows of a text with a question before each, for extractive answers.

        Windows overlap by ``stride`` tokens, or by half of the text's part if the question leaves less room.

        Raises:
            ContextOverflow: the question leaves no room for the text.
        """
        checks.text("question", question)
        checks.text("text", text)
        room = self.context - len(self.tokenizer.encode_pair(question, ""))
        if room < 1:
            raise ContextOverflow(
                f"the question is too long: with special tokens {self.context - room:,} tokens, and the context is "
                f"{self.context:,} tokens: shorten the question{self._remedy()}"
            )
        stride = stride if stride < room else room // 2
        cut = Truncation(self.context, stride=stride, strategy="only_second")
        encoding = self.tokenizer.encode_pair(question, text, truncation=cut)
        return [
            (EncoderInput(self._in_vocabulary("text", window.ids), self._types(window.type_ids)), window)
            for window in encoding.windows
        ]

    def with_offsets(self, text: str) -> tuple[EncoderInput, Encoding]:
        """The token ids of a text, and the encoding with the characters of each token.

        Raises:
            ContextOverflow: the text is longer than the context.
        """
        checks.text("text", text)
        if self._overflows(text):
            raise self._too_long(f"{len(text):,} characters, more than {self.context:,} tokens", truncates=False)
        encoding = self.tokenizer.encode_with_offsets(text)
        if len(encoding) > self.context:
            raise self._too_long(f"{len(encoding):,} tokens", truncates=False)
        return EncoderInput(self._in_vocabulary("text", encoding.ids)), encoding

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

    def _overflows(self, text: str, parse_special: bool = False) -> bool:
        """True if a beginning of the text already has too many tokens. If False, the whole text must be encoded."""
        part = PROBED * self.context + SLACK
        while 2 * part < len(text):
            found = self.tokenizer.encode(text[:part], add_special=False, parse_special=parse_special)
            if len(found) > 2 * self.context + SLACK:
                return True
            part *= 4
        return False

    def _too_long(self, length: str, truncates: bool = True) -> ContextOverflow:
        return ContextOverflow(
            f"the text is too long: {length}; the context is {self.context:,} tokens: shorten the text"
            f"{self._remedy()}{', or set truncate' if truncates else ''}"
        )

    def _remedy(self) -> str:
        """A second remedy for a text that is too long, or ""."""
        most = self.spec.max_context
        return f", or load with a larger context (up to {most:,})" if self.context < most else ""

    def _in_vocabulary(self, name: str, ids: Sequence[Any]) -> list[int]:
        """Check ids against the vocabulary: a tokenizer may have ids that the model does not have."""
        size = self.vocabulary
        return [i if type(i) is int and 0 <= i < size else token_id(name, i, size) for i in ids]
