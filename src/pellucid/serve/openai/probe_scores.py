"""The field ``probe_scores`` of answers: the scores of a request's probes, beside each generated token.

    "probe_scores": [{"token": " Paris", "scores": {"toxicity": 0.02}}, ...]

If a score is above its limit, the entry of the last token has ``"stop": NAME``, and the answer lacks its text. All APIs
have the same entries. A chunk of a stream has the entries of its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.engine.output import TokenOutput
from pellucid.engine.request import SequenceOutput
from pellucid.serve.openai.response_parts import token_text
from pellucid.tokenize import Tokenizer

FIELD = "probe_scores"


def scores_field(
    output: SequenceOutput, tokenizer: Tokenizer, first: int = 0, stop: int | None = None
) -> dict[str, Any]:
    """The field for the tokens ``first`` to ``stop`` - 1 of a sequence; empty if no probes were requested."""
    scores = output.probe_scores[first:stop]
    last = len(output.ids) - 1
    return _field(
        [
            _entry(
                token,
                row,
                output.stop_reason if at == last and output.finish_reason == "probe" else None,
                tokenizer,
            )
            for at, (token, row) in enumerate(zip(output.ids[first:stop], scores), first)
        ]
    )


def scores_of_token(token: TokenOutput, tokenizer: Tokenizer) -> dict[str, Any]:
    """The field of a chunk with one token; empty if no probes were requested."""
    if token.probe_scores is None:
        return {}
    stop = token.stop_reason if token.finish_reason == "probe" else None
    return _field([_entry(token.id, token.probe_scores, stop, tokenizer)])


def _field(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {FIELD: list(entries)} if entries else {}


def _entry(token: int, scores: Mapping[str, float], stop: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    stopped = {} if stop is None else {"stop": stop}
    return {"token": token_text(token, tokenizer), "scores": dict(scores), **stopped}
