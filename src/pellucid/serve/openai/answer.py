"""What OpenAI's answers have in common: usage, reasons, log-probabilities, errors."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.engine.output import Generation
from pellucid.sample.logprobs import Logprobs
from pellucid.serve.problem import NOTHING_MORE, Problem
from pellucid.tokenize import Tokenizer

ERRORS: Mapping[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", None),
    408: ("timeout_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "server_is_overloaded"),
}
"""The type of an error of each status, and its code where the error has none of its own.

Source: https://platform.openai.com/docs/guides/error-codes
"""
REASONS = {"stop": "stop", "length": "length", "time": "length", "until": "stop", None: "stop"}


def usage(made: Sequence[Generation], reasoning: int = 0) -> dict[str, Any]:
    """The numbers of tokens of all choices of one prompt, of which ``reasoning`` are the model's reasoning."""
    first, generated = made[0].usage, sum(one.usage.generated_tokens for one in made)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": first.prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": sum(one.usage.accepted_tokens for one in made),
            "rejected_prediction_tokens": sum(
                one.usage.proposed_tokens - one.usage.accepted_tokens for one in made
            ),
        },
    }


def added(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of usages."""
    return {
        name: added([part[name] for part in parts])
        if isinstance(value, dict)
        else sum(part[name] for part in parts)
        for name, value in parts[0].items()
    }


def chat_logprobs(logprobs: Logprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    """Log-probabilities as /v1/chat/completions has them."""
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
    """What a token adds to a text; a part of a character as OpenAI writes it, "bytes:\\xe2\\x82"."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(value: float) -> float:
    """A log-probability as JSON can have it; OpenAI's for an impossible token is -9999."""
    return value if math.isfinite(value) else -9999.0


def error_body(status: int, message: str, problem: Problem = NOTHING_MORE) -> dict[str, Any]:
    """The body of an error."""
    kind, code = ERRORS.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    return {"error": {"message": message, "type": kind, "param": problem.param, "code": problem.code or code}}


def head(number: str, kind: str, model: str) -> dict[str, Any]:
    """What every answer that has text begins with."""
    return {"id": number, "object": kind, "created": int(time.time()), "model": model}
