"""Fields of llama.cpp's requests as generation options; timings and progress in responses.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import pellucid
from pellucid.base_llm import BaseLLM
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.sample.options import Options
from pellucid.sample.step import options_of, owners, steps
from pellucid.sample.steps.penalties import MAX_ENTRIES as MOST_BIASED
from pellucid.serve.api import Events
from pellucid.serve.chat.answer_parser import AnswerParser
from pellucid.serve.generation_options import LLAMACPP, MAX_BIAS, generation_options
from pellucid.serve.request_body import BodyRules, ModelFields, RequestBody
from pellucid.serve.routes import Streaming, Tokens
from pellucid.tokenize import Tokenizer
from pellucid.util.checks import real, token_id

BUILD = f"b0-pellucid-{pellucid.__version__}"
"""Build name in llama.cpp's form. Clients read it from ``system_fingerprint`` and ``build_info``."""
# Limit of the sum of a token's biases. It is larger than any logit.
MOST_TOGETHER = 1000.0
RANDOM = (-1, (1 << 32) - 1)
NO_LIMIT = dict.fromkeys(("n_predict", "max_tokens", "max_completion_tokens"), (-1,))
LLAMACPP_RULES = BodyRules(
    options=generation_options("watch", "prompt_logprobs", "logprobs_of"),
    ignored=LLAMACPP,
    only={"lora": [], "min_keep": 0, "adaptive_target": -1.0, "verbose": False},
    renamed={"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "n_probs": "logprobs"},
    defaults={"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_last_n": 64},
    absent={**NO_LIMIT, "seed": RANDOM, "n_probs": (0,), "grammar": ("",), "top_n_sigma": (-1.0,)},
)
SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "penalties": ("penalties",),
    "dry": ("dry",),
    "top_n_sigma": ("top_n_sigma", "top-n-sigma"),
    "top_k": ("top_k", "top-k"),
    "typical": ("typ_p", "typical_p", "typ-p", "typical-p", "typical", "typ"),
    "top_p": ("top_p", "top-p", "nucleus"),
    "min_p": ("min_p", "min-p"),
    "xtc": ("xtc",),
    "temperature": ("temperature", "temp"),
}
"""llama.cpp's names of sampler steps, by Pellucid's names."""
STEPS = {name: step for step, names in SAMPLERS.items() for name in names}
PASSED_OVER = ("infill",)
"""Samplers that are ignored. llama.cpp's "infill" adds up the probabilities of tokens with a common prefix."""


class LlamaFields(ModelFields, frozen=True, kw_only=True):
    """Fields of llama.cpp's requests that generate."""

    samplers: list[str] | None = None
    stream: bool = False
    post_sampling_probs: bool = False
    return_tokens: bool = False
    return_progress: bool = False
    timings_per_token: bool = False
    response_fields: Sequence[str] = ()


def options_of_body(body: RequestBody[Any], llm: BaseLLM[Any]) -> dict[str, Any]:
    samplers: Sequence[str] | None = body.fields.samplers
    bias, stop = body.given.pop("logit_bias", None), body.given.pop("stop", None)
    options = body.options(llm.recommended)
    if isinstance(stop, list):
        stop = [one for one in stop if one != ""]
    if stop:
        options["stop"] = stop
    if bias:
        options["logit_bias"] = _biases(bias, llm)
    if options.get("ignore_eos") is True and isinstance(banned := options.get("banned", []), list):
        # As in llama.cpp, EOS tokens are never generated.
        options["banned"] = [*banned, *sorted(llm.tokenizer.eos_ids)]
    # As in llama.cpp, mirostat replaces the steps that cut the distribution.
    if options.get("mirostat"):
        cuts = {name for name, step in owners().items() if step.kind == "cut" and not step.alone}
        return {name: value for name, value in options.items() if name not in cuts}
    return options if samplers is None else _ordered(options, samplers)


def _biases(value: Any, llm: BaseLLM[Any]) -> dict[int, float]:
    """Biases by token, from pairs or an object. A string stands for each of its tokens; False forbids a token."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list) or len(pairs) > MOST_BIASED:
        raise InvalidRequest(
            f"logit_bias={brief(value)}: must be an object, or a list of pairs, of at most {MOST_BIASED:,} entries"
        )
    biases = dict[int, float]()
    for at, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InvalidRequest(f"logit_bias[{at}]={brief(pair)}: must be a pair of a token and a number")
        token, bias = pair
        amount = -math.inf if bias is False else real(f"logit_bias[{at}]", bias, -MAX_BIAS, MAX_BIAS)
        if isinstance(token, str) and not (isinstance(value, Mapping) and token.isascii() and token.isdigit()):
            ids = llm.tokenizer.encode(token, add_special=False)
        else:
            number = int(token[:18]) if isinstance(token, str) else token
            ids = [token_id(f"logit_bias[{at}]", number, llm.inputs.vocabulary)]
        for one in ids:
            total = biases.get(one, 0.0) + amount
            biases[one] = total if math.isinf(total) else max(-MOST_TOGETHER, min(total, MOST_TOGETHER))
    return biases


def _ordered(options: dict[str, Any], samplers: Sequence[str]) -> dict[str, Any]:
    """Options with a chain of ``samplers``, by llama.cpp's names. Drops the options of steps outside the chain.

    Steps that forbid or bias tokens always apply: llama.cpp does not count them among its samplers.
    """
    chosen = list[str]()
    for name in samplers:
        if name in PASSED_OVER:
            continue
        if name not in STEPS:
            raise InvalidRequest(f"samplers has {brief(name)}; known are {', '.join(STEPS)}")
        chosen.append(STEPS[name])
    always = [name for name in steps() if name not in SAMPLERS and name != "mirostat"]
    order, owner = [*always, *chosen], owners()
    remaining = {name: value for name, value in options.items() if name not in owner or owner[name].name in order}
    return {**remaining, "samplers": order}


def settings_of(options: Options, seed: int | None) -> dict[str, Any]:
    """Generation options in llama.cpp's names: ``generation_settings`` of responses, ``params`` of /props."""
    values = {
        name: options.sampling.get(name, one.default)
        for kind in steps().values()
        for name, one in options_of(kind).items()
    }
    constraint = values["grammar"] or ""
    banned = {token for token in values["banned"] if type(token) is int}
    bias = [*dict(values["logit_bias"]).items(), *((token, -math.inf) for token in sorted(banned))]
    most = -1 if options.max_new_tokens is None else options.max_new_tokens
    samplers = steps() if options.samplers is None else options.samplers
    chain = [one if isinstance(one, str) else one.name for one in samplers]
    shown = (
        *("temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma"),
        *("xtc_probability", "xtc_threshold", "typical_p", "repeat_last_n", "presence_penalty"),
        *("frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
        *("mirostat", "mirostat_tau", "mirostat_eta"),
    )
    return {
        "seed": RANDOM[1] if seed is None else seed,
        **{name: values[name] for name in shown},
        "repeat_penalty": values["repetition_penalty"],
        "dry_sequence_breakers": list(values["dry_sequence_breakers"]),
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "stop": list(options.stop or ()),
        "max_tokens": most,
        "n_predict": most,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": options.ignore_eos,
        "logit_bias": [{"bias": amount if math.isfinite(amount) else None, "token": token} for token, amount in bias],
        "n_probs": options.logprobs or 0,
        "min_keep": 0,
        "grammar": constraint if isinstance(constraint, str) else "",
        "samplers": [SAMPLERS[name][0] for name in chain if name in SAMPLERS],
        "post_sampling_probs": options.logprobs_of == "chain",
        "lora": [],
    }


# Timings and prompt progress in responses, as in llama.cpp's server.
#
# A request asks for timings with the field ``timings_per_token`` and for progress with ``return_progress``, also in
# OpenAI's APIs.

EVERY = 0.05  # seconds between two checks of the prompt's progress


class TelemetrySource(Streaming, Protocol):
    """A request that can have telemetry."""

    def blank(self, name: str, number: str) -> dict[str, Any]:
        """An event without text."""
        ...


def with_telemetry(
    read: Callable[[RequestBody[Any], BaseLLM[Any]], TelemetrySource], *, own: bool = False
) -> Callable[[RequestBody[Any], BaseLLM[Any]], Streaming]:
    """``read``, whose requests have the telemetry that their bodies ask for.

    ``own`` is True if the path is in llama.cpp's API only. Responses of such a path always have timings and the build
    name. ``read`` raises InvalidRequest for ``return_progress`` or ``verbose`` with several prompts.
    """

    def read_with_telemetry(body: RequestBody[Any], llm: BaseLLM[Any]) -> Streaming:
        fields, request = body.fields, read(body, llm)
        for name in ("return_progress", "verbose"):
            if getattr(fields, name):
                single(request.groups, name)
        asked = own or fields.timings_per_token or fields.return_progress or fields.verbose
        return TelemetryRequest(request, fields, own, llm.tokenizer) if asked else request

    return read_with_telemetry


@dataclass(frozen=True)
class TelemetryRequest:
    """A request whose response has the telemetry that its ``fields`` ask for. A verbose response shows its prompt."""

    request: TelemetrySource
    fields: Any
    own: bool
    tokenizer: Tokenizer

    @property
    def groups(self) -> Sequence[Request]:
        return self.request.groups

    def parsers(self) -> Sequence[AnswerParser]:
        return self.request.parsers()

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        response = self.request.answer(name, number)
        assert isinstance(response, dict)
        if self.own:
            response["system_fingerprint"] = BUILD
        if self.fields.verbose:
            response["__verbose"] = self._verbose()
        shows_times = self.own or self.fields.timings_per_token
        return {**response, "timings": timings(self.groups[-1])} if shows_times else response

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        fields, events, shown = self.fields, self.request.stream(name, number, tokens), False
        if fields.return_progress:
            events = with_progress(events, self.groups[0], lambda: self.request.blank(name, number))
        async with aclosing(events):
            async for event in events:
                begun = any(one.ids for one in self.groups[-1].outputs)
                ended = all(one.ended for group in self.groups for one in group.outputs)
                if (fields.timings_per_token and begun) or ((self.own or fields.timings_per_token) and ended):
                    event["timings"] = timings(self.groups[-1])
                if self.own:
                    event["system_fingerprint"] = BUILD
                    for choice in event["choices"]:
                        delta = choice.get("delta", {})
                        if "role" in delta and not delta.get("content"):
                            delta["content"] = None  # as in llama.cpp's streams; OpenAI's streams have ""
                if fields.verbose and not shown:
                    event["__verbose"], shown = self._verbose(), True
                yield event

    def _verbose(self) -> dict[str, Any]:
        return {"prompt": self.tokenizer.decode(self.groups[0].prompt, skip_special=False)}


def single(groups: Sequence[Request], field: str) -> None:
    """Raise InvalidRequest if a request with the field ``field`` has several prompts."""
    if len(groups) > 1:
        raise InvalidRequest(f"{field} needs a single prompt; the request has {len(groups):,}: leave {field} out")


async def with_progress(
    events: Events, group: Request, blank: Callable[[], dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    """Events of a stream, preceded by events with the progress of the prompt."""
    coming, reported, start = None, -1, 0.0
    try:
        while True:
            begun = reported == len(group.prompt)
            coming = coming or asyncio.ensure_future(anext(events, None))
            await asyncio.wait({coming}, timeout=None if begun else EVERY)
            read = group.prompt_read
            if not begun and read is not None:
                if reported < 0:
                    reported, start = group.prompt_output.cached, time.perf_counter()
                    yield _progress(blank(), group, reported, 0.0)
                if read > reported:
                    reported = read
                    yield _progress(blank(), group, reported, time.perf_counter() - start)
            if coming.done():
                event, coming = coming.result(), None
                if event is None:
                    return
                yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


def _progress(event: dict[str, Any], group: Request, read: int, seconds: float) -> dict[str, Any]:
    cached = group.prompt_output.cached
    progress = {"total": len(group.prompt), "cache": cached, "processed": read, "time_ms": 1e3 * seconds}
    times = _timings(cached, read - cached, seconds, 0, 0.0)
    return {**event, "prompt_progress": progress, "timings": times}


def timings(group: Request, at: int = 0) -> Mapping[str, Any]:
    """Token counts and times of a sequence so far. As in llama.cpp, the prompt's time includes the first token."""
    one, cached = group.outputs[at], group.prompt_output.cached
    times = _timings(cached, len(group.prompt) - cached, one.prefill_seconds, len(one.ids), one.total - one.first)
    proposed, accepted = (group.speculation or [(0, 0)] * (at + 1))[at]
    return {**times, **({"draft_n": proposed, "draft_n_accepted": accepted} if proposed else {})}


def _timings(cached: int, read: int, seconds: float, generated: int, after: float) -> dict[str, Any]:
    """Timings in llama.cpp's form. ``after`` is the time of decode: seconds after the first of ``generated`` tokens."""
    steps = max(generated - 1, 0)
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": 1e3 * seconds,
        "prompt_per_token_ms": 1e3 * seconds / read if read else 0.0,
        "prompt_per_second": read / seconds if seconds else 0.0,
        "predicted_n": generated,
        "predicted_ms": 1e3 * after,
        "predicted_per_token_ms": 1e3 * after / steps if steps else 0.0,
        "predicted_per_second": steps / after if after else 0.0,
    }
