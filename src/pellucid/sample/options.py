"""The checked options of a generation, which define the chain, and the stop criteria."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import InvalidRequest, brief
from pellucid.sample.chain import Chain
from pellucid.sample.checking import anything, one_of, real, texts, tokens, whole
from pellucid.sample.step import Check, SamplerStep, option, options_of, owners, steps
from pellucid.sample.steps.cuts import Temperature
from pellucid.tokenize import Tokenizer
from pellucid.util.checks import token_id

# Stop criteria besides the model's end tokens: stop strings, a time limit, a token limit. Stop strings are found across
# token boundaries. The text ends before the stop string that is complete first. Text that may begin a stop string is
# held back until the following text decides. So the result does not depend on how the text is divided into tokens.


class StopStrings:
    """Finds stop strings in a stream of text. If several are complete at the same character, the longest counts.

    ``stops`` are non-empty strings. ``found`` is the stop string that was found, or None. ``held`` is the text that is
    held back, because it may begin a stop string.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.stops = stops
        self.found: str | None = None
        self.held = ""

    @property
    def stopped(self) -> bool:
        """True if a stop string was found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Add text. Returns the text that is now certain."""
        if self.stopped:
            return ""
        self.held += text
        matches = [(at + len(stop), at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if matches:
            _, at, self.found = min(matches)
            certain, self.held = self.held[:at], ""
            return certain
        keep = self._possible_start()
        certain = self.held[: len(self.held) - keep]
        self.held = self.held[len(self.held) - keep :]
        return certain

    def flush(self) -> str:
        """End the text. Returns the text that was held back."""
        certain, self.held = ("" if self.stopped else self.held), ""
        return certain

    def _possible_start(self) -> int:
        """The number of trailing characters that may begin a stop string."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self.held)), longest, -1):
                if self.held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class StopCriteria:
    """Decides after each token's text whether the whole text ends, and names the reason.

    ``max_time`` is in seconds from ``start``.
    """

    def __init__(self, stops: tuple[str, ...] = (), max_time: float | None = None) -> None:
        self.strings = StopStrings(stops)
        self._max_time, self._deadline = max_time, math.inf

    def start(self) -> None:
        """Start the time limit."""
        if self._max_time is not None:
            self._deadline = time.perf_counter() + self._max_time

    def push(self, text: str, last: bool) -> tuple[str, str | None]:
        """Add text. Returns the part that is now certain, and the reason if the text ends. ``last`` ends the text."""
        certain, reason = self.strings.push(text), None
        if self.strings.stopped:
            return certain, "stop"
        if last:
            reason = "length"
        elif self._max_time is not None and time.perf_counter() >= self._deadline:
            reason = "time"
        return (certain + self.strings.flush() if reason else certain), reason

    def flush(self, text: str) -> str:
        """Add ``text`` as the last text, because the model ended the text. Returns the held-back text and ``text``."""
        return self.strings.push(text) + self.strings.flush()


SEEDS = 1 << 63
MAX_STOPS, MAX_STOP_IDS, MAX_SAMPLERS = 64, 1024, 64
MAX_LOGPROBS = 1000

OTHER_NAMES: Mapping[str, str] = {
    **{
        name: f"the name is {own}"
        for own, names in {
            "max_new_tokens": "max_tokens max_completion_tokens n_predict num_predict max_length",
            "min_new_tokens": "min_tokens min_length",
            "temperature": "temp",
            "repetition_penalty": "repeat_penalty",
            "typical_p": "typical",
            "stop": "stop_strings stop_sequences",
            "logprobs": "top_logprobs n_probs output_logits",
            "json_schema": "guided_json response_format format",
            "regex": "guided_regex",
            "choices": "guided_choice",
            "grammar": "guided_grammar",
            "banned": "bad_words bad_words_ids",
        }.items()
        for name in names.split()
    },
    "do_sample": "temperature=0 takes the most likely token, and other temperatures draw",
    "n": "llm.samples(prompt, n) makes several texts",
    "num_return_sequences": "llm.samples(prompt, n) makes several texts",
    "num_beams": "llm.beam_search(prompt, num_beams=4) searches with beams",
    "stream": "llm.stream(prompt) yields the pieces of the text",
    "n_ctx": "pellucid.load(model, context=...) sets the context",
    "num_ctx": "pellucid.load(model, context=...) sets the context",
    "max_model_len": "pellucid.load(model, context=...) sets the context",
}
"""Names of options in transformers, vLLM, llama.cpp and Ollama, and what an error says about them."""


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name}={brief(value)}: must be True or False")
    return value


def _kept(name: str, value: Any) -> bool | tuple[int, ...]:
    return value if isinstance(value, bool) else tokens(MAX_STOP_IDS)(name, value)


def _until(name: str, value: Any) -> Callable[[str], bool] | None:
    if value is not None and not callable(value):
        raise InvalidRequest(f"{name}={brief(value)}: must be a function of the text so far")
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Options:
    """The options of a generation. The options of the chain's steps are in ``sampling``, by name.

    An entry of ``samplers`` is the name of a step, or a step object. The result reports a random seed. ``stop`` strings
    are not part of the text.

    Raises:
        InvalidRequest: a value has the wrong type or is out of range.
    """

    samplers: Sequence[str | SamplerStep] | None = option(
        None, anything, "Sampler steps in their order, separated by commas. Default: all steps with an effect."
    )
    seed: int | None = option(
        None, whole(0, SEEDS - 1, "leave it out to draw a random seed"), "Seed of the random numbers. Default: random."
    )
    stop: Sequence[str] | str | None = option(
        (), texts(MAX_STOPS), "Stop string: the text ends before it. May be repeated."
    )
    stop_token_ids: Sequence[int] | None = option((), tokens(MAX_STOP_IDS), "Stop tokens: ids, separated by commas.")
    ignore_eos: bool = option(False, _flag, "Continue after the model's end-of-text tokens.")
    max_new_tokens: int | None = option(
        None,
        whole(1, 1 << 31, "leave it out for as many tokens as fit into the context"),
        "Maximum generated tokens. Default: the rest of the context.",
    )
    max_time: float | None = option(
        None, real(0, 1e9, "seconds; leave it out for no limit", above=True), "Maximum seconds of the generation."
    )
    until: Callable[[str], bool] | None = option(
        None,
        _until,
        "Function of the text so far, called in the thread that reads the text. The text ends when it returns True.",
    )
    prompt_lookup: bool = option(
        True,
        _flag,
        "Speculative decoding where it is faster, with tokens copied from an earlier occurrence of the last tokens. "
        "The text does not change.",
    )
    draft: bool = option(True, _flag, "The same with tokens that the model's draft proposes.")
    keep_special: bool | Sequence[int] = option(
        False, _kept, "Ids of control tokens that appear in the text, or True for all control tokens."
    )
    logprobs: int | None = option(
        None,
        whole(0, MAX_LOGPROBS, "the number of alternatives to show; leave it out for no log-probabilities"),
        "N: log-probabilities of each token and of the N most likely tokens.",
    )
    prompt_logprobs: int | None = option(
        None, whole(0, MAX_LOGPROBS, "the number of alternatives to show"), "The same for the tokens of the prompt."
    )
    logprobs_of: str = option(
        "logits",
        one_of("logits", "chain", "both"),
        "logits: the model's distribution; chain: the distribution after the chain; both: the model's, and those of "
        "the same tokens after the chain.",
    )
    watch: bool = option(False, _flag, "Record the effect of each step of the chain on each token.")
    receipt: bool = option(False, _flag, "Add a receipt to the result (``receipts/``), which any machine can replay.")
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, declared in options_of(Options).items():
            value = getattr(self, name)
            if value is None and declared.default in (None, ()):
                checked = declared.default
            else:
                checked = declared.metadata["check"](name, value)
            object.__setattr__(self, name, checked)  # the class is frozen; NumPy's numbers become Python's
        if self.until is not None and self.receipt:
            raise InvalidRequest(
                f"until={brief(self.until)}: a receipt cannot hold a function: use stop, or leave receipt out"
            )
        object.__setattr__(self, "_steps", _active_steps(self.samplers, self.sampling))

    @classmethod
    def of(cls, also: Iterable[str] = (), /, **options: Any) -> Options:
        """Make options from names and values, including options of the steps.

        ``also`` are further names that an error message may suggest.

        Raises:
            InvalidRequest: a value is invalid, or a name is not an option; the message suggests the nearest names.
        """
        sampling = {name: options.pop(name) for name in list(options) if name in owners()}
        for name in options:
            if name not in CHECKS:
                from difflib import get_close_matches  # slow to import, and only this error needs it

                near = get_close_matches(str(name), [*owners(), *CHECKS, *also], 3, 0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else "see docs/sampling.md"
                hint = OTHER_NAMES.get(str(name), hint)
                raise InvalidRequest(f"unknown option {brief(name)}: {hint}")
        return cls(**options, sampling=sampling)

    def chain(self) -> Chain:
        """The chain: the steps that have an effect, in order, then a draw; or greedy decoding."""
        chosen: tuple[SamplerStep, ...] = self._steps  # type: ignore[attr-defined]
        seed = int.from_bytes(os.urandom(8), "little") % SEEDS if self.seed is None else self.seed
        chain = Chain(chosen, seed=seed)
        return (
            chain.without_drawing() if any(isinstance(step, Temperature) and step.greedy for step in chosen) else chain
        )

    def ends(self, tokenizer: Tokenizer, vocabulary: int) -> frozenset[int]:
        """The tokens that end the text.

        Raises:
            InvalidRequest: a token is outside the ``vocabulary``.
        """
        own = frozenset(token_id("stop_token_ids", token, vocabulary) for token in self.stop_token_ids or ())
        return own if self.ignore_eos else own | tokenizer.eos_ids

    def skipped(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The control tokens that do not appear in the text."""
        special = tokenizer.vocabulary.special_ids
        if not self.keep_special:
            return special
        return frozenset() if self.keep_special is True else special.difference(self.keep_special)

    def stop_criteria(self) -> StopCriteria:
        """The criteria that end the text besides end tokens. The time limit starts now."""
        return StopCriteria(tuple(self.stop or ()), self.max_time)


CHECKS: Mapping[str, Check] = {name: one.metadata["check"] for name, one in options_of(Options).items()}
"""The checks of the options, by name."""


def check_of(name: str) -> Check | None:
    """The check of an option of a generation or of a step; None if there is no such option."""
    owner = owners().get(name)
    return CHECKS.get(name) if owner is None else options_of(owner)[name].metadata["check"]


def _active_steps(samplers: Any, sampling: Mapping[str, Any]) -> tuple[SamplerStep, ...]:
    for name in sampling:
        if name not in owners():
            raise InvalidRequest(f"unknown option {brief(name)}: sampling holds options of steps")
    by_name = {
        name: kind(**{option: sampling[option] for option in options_of(kind) if option in sampling})
        for name, kind in steps().items()
    }
    order = list(by_name.values()) if samplers is None else _ordered(samplers, by_name)
    missing = {name for name, step in by_name.items() if step not in order}
    for name in sampling:
        if (owner := owners()[name]).name in missing and not by_name[owner.name].idle:
            raise InvalidRequest(
                f"{name}={brief(sampling[name])}, but samplers has no {owner.name}: add it, or leave {name} out"
            )
    active = [step for step in order if not step.idle]
    if samplers is None and (lone := next((step for step in active if step.alone), None)):
        for name in sampling:
            if (other := owners()[name]).kind == "cut" and other.name != lone.name and by_name[other.name] in active:
                raise InvalidRequest(
                    f"{name}={brief(sampling[name])}: {lone.name} replaces {other.name}: remove one of them"
                )
        active = [step for step in active if step is lone or step.kind != "cut"]
    return tuple(active)


def _ordered(samplers: Any, by_name: Mapping[str, SamplerStep]) -> list[SamplerStep]:
    if isinstance(samplers, (str, bytes)) or not isinstance(samplers, Sequence):
        raise InvalidRequest(f"samplers={brief(samplers)}: must be a list of names: {', '.join(by_name)}")
    steps: list[SamplerStep] = []
    for step in samplers:
        if len(steps) >= MAX_SAMPLERS:
            raise InvalidRequest(f"samplers has more than {MAX_SAMPLERS} steps: give fewer")
        if isinstance(step, SamplerStep):
            steps.append(step)
        elif isinstance(step, str) and step in by_name:
            if by_name[step] in steps:
                raise InvalidRequest(f"samplers has {step} twice: leave one out")
            steps.append(by_name[step])
        else:
            raise InvalidRequest(f"samplers has {brief(step)}; the steps are {', '.join(by_name)}")
    return steps
