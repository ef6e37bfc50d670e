"""What OpenAI's APIs share: fields, usage, finish reasons, log-probabilities, scores of probes, receipts, errors."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pellucid.engine.output import Generation, TokenOutput
from pellucid.engine.request import SequenceOutput
from pellucid.sample.logprobs import Logprobs
from pellucid.serve.api import NO_DETAILS, ErrorDetails
from pellucid.serve.generation_options import LLAMACPP, OPENAI_DEFAULTS, generation_options, ignored
from pellucid.serve.request_body import BodyRules, Fields
from pellucid.tokenize import Tokenizer

OPENAI_RULES = BodyRules(
    options=generation_options("watch", "prompt_logprobs"),
    renamed={"max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens"},
    defaults=OPENAI_DEFAULTS,
    ignored=frozenset(
        {
            *("user", "store", "metadata", "service_tier", "verbosity"),
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
            "prediction",
        }
    )
    | LLAMACPP,
    only={
        "modalities": ["text"],
        "functions": [],
        "function_call": "none",
        **dict.fromkeys(("audio", "moderation", "web_search_options")),
    },
)
"""The rules of chat and text completions."""


class StreamOptions(Fields, frozen=True):
    """The field ``stream_options``. With ``include_usage``, a stream ends with token counts."""

    include_usage: bool = False
    include_obfuscation: Annotated[Any, ignored("stream_options.include_obfuscation")] = None


ERRORS: Mapping[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", None),
    408: ("timeout_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "server_is_overloaded"),
}
"""OpenAI's error type for each HTTP status, and the code for errors that have no code in ``api.py``.

Source: https://platform.openai.com/docs/guides/error-codes
"""
REASONS = {"stop": "stop", "length": "length", "time": "length", "until": "stop", "probe": "stop", None: "stop"}


def usage(generations: Sequence[Generation], reasoning: int = 0) -> dict[str, Any]:
    """Token counts of all choices of one prompt. ``reasoning`` is the number of reasoning tokens in the choices."""
    first, generated = generations[0].usage, sum(one.usage.generated_tokens for one in generations)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": first.prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": sum(one.usage.accepted_tokens for one in generations),
            "rejected_prediction_tokens": sum(
                one.usage.proposed_tokens - one.usage.accepted_tokens for one in generations
            ),
        },
    }


def total_usage(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: total_usage([part[name] for part in parts])
        if isinstance(value, dict)
        else sum(part[name] for part in parts)
        for name, value in parts[0].items()
    }


def chat_logprobs(logprobs: Logprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    """Log-probabilities in the form of /v1/chat/completions."""
    content = []
    for row, token in enumerate(logprobs.ids):
        alternatives = [
            _of_token(int(other), float(value), tokenizer)
            for other, value in zip(logprobs.top_ids[row], logprobs.top[row])
            if other >= 0
        ]
        one = _of_token(int(token), float(logprobs.chosen[row]), tokenizer)
        content.append({**one, "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _of_token(token: int, value: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": token_text(token, tokenizer),
        "logprob": finite(value),
        "bytes": list(tokenizer.token_bytes(token)),
    }


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """Text of a token. A token with a part of a character has OpenAI's form: "bytes:\\xe2\\x82"."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(value: float) -> float:
    """A log-probability as a finite number for JSON. As in OpenAI's API, -9999 stands for an impossible token."""
    return value if math.isfinite(value) else -9999.0


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    kind, code = ERRORS.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    return {"error": {"message": message, "type": kind, "param": details.param, "code": details.code or code}}


def response_head(number: str, kind: str, model: str) -> dict[str, Any]:
    """First fields of every response with text."""
    return {"id": number, "object": kind, "created": int(time.time()), "model": model}


# The field ``probe_scores`` of answers: the scores of a request's probes, beside each generated token.
#
#     "probe_scores": [{"token": " Paris", "scores": {"toxicity": 0.02}}, ...]
#
# If a score is above its limit, the entry of the last token has ``"stop": NAME``, and the answer lacks its text. All
# APIs have the same entries. A chunk of a stream has the entries of its tokens.

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
                token, row, output.stop_reason if at == last and output.finish_reason == "probe" else None, tokenizer
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


def receipt_field(generation: Generation | None) -> dict[str, Any]:
    """The field ``receipt`` of an answer; empty if the generation has no receipt."""
    receipt = None if generation is None else generation.receipt
    return {} if receipt is None else {"receipt": receipt.as_dict()}
