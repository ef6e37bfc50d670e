"""Common parts of Ollama's responses: times, log-probabilities, errors.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.sample.logprobs import joined
from pellucid.serve.error_details import NO_DETAILS, ErrorDetails
from pellucid.serve.openai.probe_scores import scores_field
from pellucid.serve.openai.response_parts import chat_logprobs
from pellucid.serve.receipt_field import receipt_field
from pellucid.tokenize import Tokenizer

REASONS = {"stop": "stop", "until": "stop", "probe": "stop", "length": "length", "time": "length"}


def timestamp(seconds: float = 0.0) -> str:
    """Timestamp in Ollama's form, ``seconds`` from now."""
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def chunk(name: str, **content: Any) -> dict[str, Any]:
    """A chunk of a response, but not the last chunk."""
    return {"model": name, "created_at": timestamp(), **content, "done": False}


def last_chunk(name: str, generation: Generation, **content: Any) -> dict[str, Any]:
    """Last chunk of a response, or a complete response. Durations are in nanoseconds."""
    times, usage = generation.timings, generation.usage

    def nanoseconds(seconds: float) -> int:
        return round(1e9 * seconds)

    return {
        **chunk(name, **content),
        "done": True,
        "done_reason": REASONS.get(generation.finish_reason or "stop", "stop"),
        "total_duration": nanoseconds(times.total),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(times.prefill),
        "eval_count": usage.generated_tokens,
        "eval_duration": nanoseconds(max(times.total - times.first_token, 0.0)),
        **receipt_field(generation),
    }


@dataclass
class ChunkLogprobs:
    """Log-probabilities and scores of probes of the only sequence of ``group``, chunk by chunk.

    ``streamed`` counts the streamed tokens, and ``sent`` the tokens of the chunks so far.
    """

    group: Request
    tokenizer: Tokenizer
    streamed: int = 0
    sent: int = 0

    def all(self) -> dict[str, Any]:
        """Fields of a complete response; empty if neither log-probabilities nor scores were requested."""
        return self._fields(0, None)

    def next(self) -> dict[str, Any]:
        """Fields of a chunk: the tokens streamed since the last chunk."""
        # A request on a cluster stores all tokens of a message before it streams the first token. The chunk therefore
        # needs the number of streamed tokens, not the number of stored tokens.
        first, self.sent = self.sent, self.streamed
        return self._fields(first, self.streamed)

    def _fields(self, first: int, stop: int | None) -> dict[str, Any]:
        output, alternatives = self.group.outputs[0], self.group.options.logprobs
        scores = scores_field(output, self.tokenizer, first, stop)
        if alternatives is None:
            return scores
        rows = joined(output.logprobs[first:stop], alternatives)
        return {"logprobs": chat_logprobs(rows, self.tokenizer)["content"], **scores}


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    """Error body in Ollama's form."""
    return {"error": message}
