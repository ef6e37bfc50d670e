"""What is inside while a text is read and continued: recorded values, lenses, the way from a text to its tokens."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.api import array_body
from pellucid.serve.body import Body
from pellucid.serve.look.fields import edits_of, no_more, prompt_of
from pellucid.serve.model import ServedModel, in_process
from pellucid.trace.edits import EditOf
from pellucid.trace.explanation import MOST_TOP
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.lenses.logit_lens import logit_lens
from pellucid.trace.lenses.neighbours import around
from pellucid.trace.selection import select
from pellucid.trace.trace import Trace

MOST_POINTS, MOST_ANSWER, MOST_TEXT, MOST_IDS = 64, 64 << 20, 4000, 4096
RECORDED = 8 * MOST_ANSWER  # bytes that a reading records before norms and pooled patterns are made of them
MOST_POOLED = 4096  # rows and columns
MOST_LENS, MOST_SCORES, MOST_ATTRIBUTED = 512, 1 << 26, 2048  # tokens; tokens times the vocabulary; tokens
MOST_SEARCHED, MOST_WORD = 8, 200  # words whose neighbours are looked for; characters of a word
MOST_WORDS, MOST_NEIGHBOURS = 32, 50


@dataclass(frozen=True)
class TraceReading:
    """The values of ``points``, and of ``norms`` the lengths of their rows, for a prompt and what follows it.

    A pattern with more than ``pool`` rows or columns is reduced to the maxima of squares of tokens.
    """

    llm: LLM
    prompt: list[int]
    wanted: Sequence[str]
    lengths: Set[str]
    edits: Sequence[EditOf]
    pool: int | None
    trace: Trace | None
    groups: Sequence[TextGroup]

    @classmethod
    def of(cls, body: Body, model: ServedModel) -> TraceReading:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        llm = in_process(model)
        prompt, edits = prompt_of(body, llm), edits_of(body, llm)
        points, norms = _names(body, "points"), _names(body, "norms")
        pool = body.count("pool", 1, MOST_POOLED)
        options = body.options({"temperature": 0, "max_new_tokens": 1})
        lengths = {one.name for one in select(llm.points, norms)} - {
            one.name for one in select(llm.points, points)
        }
        wanted = list(dict.fromkeys([*points, *norms]))
        if not llm.spec.head:
            return cls(llm, prompt, wanted, lengths, edits, pool, None, [])
        with llm.trace(*wanted, budget=RECORDED) as trace:
            groups = [llm.request(prompt, edits=edits, **options)]
        return cls(llm, prompt, wanted, lengths, edits, pool, trace, groups)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """The arrays; the sentence of an encoder is read now.

        Raises:
            InvalidRequest: they are too large.
        """
        llm, trace = self.llm, self.trace
        if trace is None:
            with llm.trace(*self.wanted, budget=RECORDED) as trace:
                llm.embed_tokens([self.prompt], list(self.edits))
        made = self.groups[0].results()[0] if self.groups else None
        ids, (sequence,) = made.ids if made else [], trace.sequences
        arrays, size = dict[str, Any](), 0
        for point in trace:
            values = sequence[point]
            if point in self.lengths:
                flat = values.reshape(len(values), -1).astype(np.float64)
                values = np.sqrt((flat * flat).sum(-1)).astype(np.float32)
            elif self.pool is not None and llm.points[point].kind == "pattern":
                values = pooled(values, self.pool)
            size += values.nbytes
            if size > MOST_ANSWER:
                raise InvalidRequest(
                    f"points={brief(point)}: the answer is larger than {MOST_ANSWER >> 20} MiB: name fewer points"
                )
            arrays[point] = array_body(values)
        return {
            "model": name,
            "prompt": self.prompt,
            "ids": ids,
            "pieces": [llm.tokenizer.piece(token) for token in [*self.prompt, *ids]],
            "text": made.text if made else "",
            "dropped": trace.dropped,
            "arrays": arrays,
        }


def pooled(patterns: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Patterns (H, T, S) with at most ``most`` rows and columns: the maxima of squares of tokens."""
    _, rows, columns = patterns.shape
    side = -(-max(rows, columns) // most)
    if side == 1:
        return patterns
    for axis, count in ((1, rows), (2, columns)):
        patterns = np.maximum.reduceat(patterns, np.arange(0, count, side), axis)
    return patterns


def _names(body: Body, field: str) -> list[str]:
    found = body.take(field, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidRequest(f"{field}={brief(found)}: must be a list of names, such as blocks.*.residual")
    if len(found) > MOST_POINTS:
        raise InvalidRequest(f"{field} has {len(found):,} names; the limit is {MOST_POINTS:,}")
    return found


def tokenization(body: Body, llm: ServedModel) -> dict[str, Any]:
    """How a ``text`` becomes tokens, stage by stage: ``tokenize/explain.py``."""
    text = body.text("text") or ""
    if len(text) > MOST_TEXT:
        raise InvalidRequest(f"text has {len(text):,} characters; the limit is {MOST_TEXT:,}")
    no_more(body, "a tokenization has text")
    return llm.tokenizer.explain(text).as_dict()


def pieces(body: Body, llm: ServedModel) -> dict[str, Any]:
    """The texts of tokens."""
    ids, size = body.required("ids"), llm.inputs.vocabulary
    if (
        not isinstance(ids, list)
        or len(ids) > MOST_IDS
        or not all(type(one) is int and 0 <= one < size for one in ids)
    ):
        raise InvalidRequest(f"ids={brief(ids)}: must be at most {MOST_IDS:,} token ids below {size:,}")
    no_more(body, "it has ids")
    return {"pieces": [llm.tokenizer.piece(token) for token in ids]}


def attribution(body: Body, llm: ServedModel) -> dict[str, Any]:
    """What each part adds to the logit of ``token``, after ``position``: ``trace/lenses/attribution.py``."""
    prompt, token, against = prompt_of(body, llm), body.take("token"), body.take("against")
    position = body.count("position", -len(prompt), len(prompt) - 1)
    no_more(body, "an attribution has prompt, token, against and position")
    _refuse_long(prompt, MOST_ATTRIBUTED)
    at = -1 if position is None else position
    return attribute(in_process(llm), prompt, token, against=against, position=at).as_dict()


def _refuse_long(prompt: list[int], most: int) -> None:
    if len(prompt) > most:
        raise InvalidRequest(f"prompt has {len(prompt):,} tokens; the limit is {most:,} here")


def lens(body: Body, llm: ServedModel) -> dict[str, Any]:
    """What the model would say after each block, at every position: ``trace/lenses/logit_lens.py``."""
    prompt, top = prompt_of(body, llm), body.count("top", 1, MOST_TOP) or 5
    no_more(body, "a lens has prompt and top")
    _refuse_long(prompt, min(MOST_LENS, MOST_SCORES // llm.spec.embedding.vocabulary))
    return logit_lens(in_process(llm), prompt, top=top).as_dict()


def near(body: Body, llm: ServedModel) -> dict[str, Any]:
    """The nearest tokens of ``words``, the cosines between them, and a map."""
    words, asked = body.texts("words"), body.count("n", 0, MOST_NEIGHBOURS)
    count = 8 if asked is None else asked
    if not 1 <= len(words) <= MOST_WORDS:
        raise InvalidRequest(f"words has {len(words):,} words; the limit is {MOST_WORDS}, and one at least")
    no_more(body, "neighbours have words and n")
    if any(len(word) > MOST_WORD for word in words) or (count and len(words) > MOST_SEARCHED):
        raise InvalidRequest(
            f"words={brief(words)}: at most {MOST_WORD} characters each, and neighbours of {MOST_SEARCHED} at a time"
        )
    return around(llm, words, count)
