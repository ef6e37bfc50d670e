"""Models that score the options of all questions of a prompt together: llama.cpp's types "clef" and "lfm2-d1-omni"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.decide.prompts import (
    DecisionModel,
    DecisionPrompt,
    QuestionSpans,
    Reading,
    ScoredOptions,
    replaced,
    without_special,
)
from pellucid.decide.questions import TYPES, Content, Question, Scores
from pellucid.errors import InvalidRequest, TemplateError, shown
from pellucid.model.config import Config
from pellucid.model.decision_heads import HIDDEN_NORM, joint_head, joint_shapes
from pellucid.model.slot_reader import SlotReader
from pellucid.model.weight_map import Slot
from pellucid.util.probabilities import softmax
from pellucid.weights.checkpoint import Checkpoint

# The prompt of llama.cpp's type "lfm2-d1-omni" (d1-omni), for a state that is text.
#
#     [cls] state question ([mask] option)*, with control tokens between them
#
# The template writes the prompt in pieces, which are tokenized one by one. The texts of options and of the question
# have a limit, and the state gets the tokens that are left. The model also reads pictures and sounds, which are refused
# here.
#
# Source: ``fill_task_d1omni`` in llama.cpp's tools/server/server-decision.cpp.

TOKENS = 16384  # maximum number of tokens of a prompt in the model's training
START = "<<d1omni:"
SEPARATOR, STATE, QUESTION, OPTION = (f"{START}{name}>>" for name in ("sep", "state", "question", "option"))
"""Marks: between the pieces of the prompt, and at the start of the pieces whose length is limited."""
GIVEN = {"sep": SEPARATOR, "mark_state": STATE, "mark_question": QUESTION, "mark_option": OPTION}


class OmniOptions(ScoredOptions):
    explains = True

    def __init__(self, model: DecisionModel) -> None:
        super().__init__(model)
        model.needs(model.spec.decision is not None, "lfm2 with decision blocks")
        self.mark = model.token("mask", model.tokenizer.mask_id)

    def printed(self, content: Any) -> Any:
        return replaced(without_special(content), lambda text: text.replace(START, "<<d1omni "))

    def prompt(self, state: Content, questions: Sequence[Question], number: int) -> DecisionPrompt:
        """The prompt of the question ``number``.

        Raises:
            InvalidRequest: the options do not fit into ``TOKENS``.
            TemplateError: the template fails, or writes another layout.
        """
        question, count = questions[number], len(questions[number].options)
        values = self.printed(self.model.variables(state, questions, number))
        parts, marks = self.model.tokenizer.encode_template(
            self.model.template, {**values, "audio": False}, tuple(GIVEN.values()), GIVEN
        )
        budget = max(96, min(24 * count + 32, TOKENS // 2))
        limits = {QUESTION: max(16, budget), OPTION: max(2, (budget - 3 * count) // count)}
        before, middle, after = list[int](), None, list[int]()
        for kind, ids in pieces(parts, marks, SEPARATOR):
            if kind == STATE and middle is None:
                middle = ids
            elif kind == STATE:
                raise TemplateError("the decision template writes more than one state")
            else:
                (before if middle is None else after).extend(ids[: limits.get(kind, len(ids))])
        if middle is None or parts[0]:
            raise TemplateError("the decision template must write the state as a piece, after a separator")
        room = max(0, TOKENS - len(before) - len(after))
        ids = [*before, *middle[:room], *after][:TOKENS]
        positions = tuple(at for at, token in enumerate(ids) if token == self.mark)
        if len(positions) != count:
            raise InvalidRequest(
                f"questions.{shown(question.id)} has {count:,} options, of which {len(positions):,} fit into the "
                f"{TOKENS:,} tokens that the model reads: offer fewer options"
            )
        return DecisionPrompt(ids, (Reading(number, positions[0], marks=positions),), TYPES.index(question.type))


def pieces(parts: Sequence[list[int]], marks: Sequence[str], separator: str) -> list[tuple[str, list[int]]]:
    """The pieces of a template's text after the first: the mark at the start of each ("": none), and its tokens.

    ``marks`` are between the ``parts``. Raises TemplateError if a mark is not at the start of a piece.
    """
    found = list[tuple[str, list[int]]]()
    for mark, ids in zip(marks, parts[1:]):
        if mark == separator:
            found.append(("", ids))
        elif found and found[-1] == ("", []):
            found[-1] = (mark, ids)
        else:
            raise TemplateError(f"the decision template writes {shown(mark)} inside a piece, not at its start")
    return found


# Scores the options of all questions of a prompt together: the head of llama.cpp's type "clef".
#
# In: the normalised vectors of a prompt's tokens (T, D) float32, from the engine. Out: a score for each option.
#
#     memory = hidden W_memory                                     of each token (T, W)
#     option = context + lexical + question, each projected        of each option: means over its tokens (O, W)
#     option += attend(option, memory) + feedforward               in each routing block
#     field  = question + summary of its options + end + type      of each question (Q, W)
#     field += attend(field, field) + attend(field, memory) + feedforward      in each joint block
#     score  = s0 prior + s2 (s1 cos(field, option) + scorer(field, option))
#
# ``lexical`` is the mean of the option's rows in the output embedding. ``prior`` is its cosine with the question's mean
# vector plus the vector of the last token. The head runs in NumPy in float32, because it has few rows, except for the
# products with ``memory``, which cost a small part of the model's own. A prompt's scores depend on this prompt alone,
# so they have the same bits in any batch.
#
# Dimensions: T tokens, D model width, W head width, Q questions, O options.
#
# Source: ``build_head`` in llama.cpp's src/models/clef.cpp.

Rows = NDArray[np.float32]
TINY = 1e-12  # the least length that a vector is divided by


class JointScorer:
    """The head of a file, with its tensors in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        metadata = checkpoint.metadata
        own = Config(metadata, checkpoint.path).with_prefix(f"{metadata['general.architecture']}.")
        self.head = joint_head(checkpoint, own)
        shapes = joint_shapes(self.head, own.count("embedding_length"))
        self._checkpoint = checkpoint
        self._weights = {
            name: SlotReader(checkpoint, (Slot(name),)).values()
            for name in shapes
            if not name.startswith(f"{HIDDEN_NORM}.")  # the engine applies this norm
        }
        stated = "output.weight" in checkpoint.tensors
        self._embedding = "output.weight" if stated else "token_embd.weight"

    def scores(self, hidden: Rows, ids: Sequence[int], questions: Sequence[QuestionSpans]) -> list[Scores]:
        """The scores (n,) of the n options of each question of a prompt with the tokens ``ids``.

        ``hidden`` are the vectors (T, D) of its tokens.
        """
        spans = [span for one in questions for span in one.options]
        owner = np.repeat(np.arange(len(questions)), [len(one.options) for one in questions])
        asked = np.stack([hidden[slice(*one.instructions)].mean(0) for one in questions])
        lexical = np.stack([self._embeddings(ids[slice(*span)]).mean(0) for span in spans])
        memory, end = self._projected(hidden, "memory"), hidden[-1]
        options = self._projected(np.stack([hidden[slice(*span)].mean(0) for span in spans]), "option_context")
        options += self._projected(lexical, "option_lexical")
        options += self._projected(asked, "option_question")[owner]
        options = self._routed(options, memory)
        fields = self._projected(asked, "question")
        fields += self._norm(self._summaries(fields, options, owner), "decision.option_summary_norm")
        fields += self._projected(end, "global")
        fields += self._weights["token_types.weight"][[one.type for one in questions]]
        fields = self._joined(fields, memory)
        prior = (_unit(lexical) * _unit(asked + end)[owner]).sum(-1)
        every = self._compared(fields[owner], self._norm(options, "decision.option_norm"), prior)
        return [every[owner == number] for number in range(len(questions))]

    def _embeddings(self, ids: Sequence[int]) -> Rows:
        different = {
            token: SlotReader(self._checkpoint, (Slot(self._embedding, rows=(token, token + 1)),)).values()
            for token in set(ids)
        }
        return np.concatenate([different[token] for token in ids])

    def _routed(self, options: Rows, memory: Rows) -> Rows:
        for number in range(self.head.routing):
            at = f"dec.blk.{number}"
            queries, keys = (
                self._norm(options, f"{at}.cross_attn_norm"),
                self._norm(memory, f"{at}.cross_attn_norm_kv"),
            )
            options = options + self._attention(queries, keys, f"{at}.cross_attn")
            options = options + self._feedforward(options, at)
        return options

    def _summaries(self, fields: Rows, options: Rows, owner: NDArray[np.int64]) -> Rows:
        """The mean of each question's own options (Q, W), weighted by their products with the question."""
        products = fields @ options.T / np.float32(math.sqrt(self.head.width))
        found = np.empty_like(fields)
        for number, row in enumerate(products):
            mine = owner == number
            found[number] = np.float32(softmax(row[mine], 1.0)) @ options[mine]
        return found

    def _joined(self, fields: Rows, memory: Rows) -> Rows:
        for number in range(self.head.routing, self.head.routing + self.head.joint):
            at = f"dec.blk.{number}"
            rows = self._norm(fields, f"{at}.attn_norm")
            fields = fields + self._attention(rows, rows, f"{at}.attn")
            rows = self._norm(fields, f"{at}.cross_attn_norm")
            fields = fields + self._attention(rows, memory, f"{at}.cross_attn")
            fields = fields + self._feedforward(fields, at)
        return self._norm(fields, "decision.field_norm")

    def _compared(self, fields: Rows, options: Rows, prior: Rows) -> Scores:
        """The scores (O,) of options, each with the vector of its question."""
        features = (fields, options, fields * options, np.abs(fields - options))
        inner = _gelu(self._dense(np.concatenate(features, axis=-1), "decision.scorer"))
        residual = self._dense(inner, "decision.scorer_out")[:, 0]
        of_prior, of_cosine, of_joint = self._weights["decision.scales"]
        cosine = (_unit(fields) * _unit(options)).sum(-1)
        scores: Scores = of_prior * prior + of_joint * (of_cosine * cosine + residual)
        return scores

    def _attention(self, queries: Rows, rows: Rows, at: str) -> Rows:
        """Attention of ``queries`` (n, W) to all ``rows`` (m, W), without positions: (n, W)."""
        heads, width = self.head.heads, self.head.width // self.head.heads
        q = self._dense(queries, f"{at}_q").reshape(-1, heads, width).transpose(1, 0, 2)
        k = self._dense(rows, f"{at}_k").reshape(-1, heads, width).transpose(1, 2, 0)
        v = self._dense(rows, f"{at}_v").reshape(-1, heads, width).transpose(1, 0, 2)
        weights = q @ k / np.float32(math.sqrt(width))
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(1, 0, 2).reshape(len(queries), -1)
        return self._dense(mixed, f"{at}_o")

    def _feedforward(self, x: Rows, at: str) -> Rows:
        inner = _gelu(self._dense(self._norm(x, f"{at}.ffn_norm"), f"{at}.ffn_up"))
        return self._dense(inner, f"{at}.ffn_down")

    def _projected(self, x: Rows, name: str) -> Rows:
        projected: Rows = x @ self._weights[f"decision.proj_{name}.weight"].T
        return projected

    def _dense(self, x: Rows, name: str) -> Rows:
        found: Rows = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return found

    def _norm(self, x: Rows, name: str) -> Rows:
        x = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.head.eps))
        found: Rows = x / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return found


def _unit(x: Rows) -> Rows:
    found: Rows = x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), np.float32(TINY))
    return found


def _gelu(x: Rows) -> Rows:
    tails = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(np.float32)
    found: Rows = x * (1 + tails) / 2
    return found
