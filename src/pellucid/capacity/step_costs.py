"""The time of a step, as a function of its rows and tokens: measured on this machine, and scaled to other machines.

A step with R decode rows and P prompt tokens takes the time of a step with R + P tokens, plus the time of logits and
sampling for R rows. Attention adds time for each token that a row or a prompt token attends to. Times are measured at
some sizes, and interpolated linearly between them.
"""

from __future__ import annotations

import bisect
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pellucid.capacity.machines import Link, Machine
from pellucid.engine.request import run_together
from pellucid.errors import InvalidRequest
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.measure.cost import Cost, Rates, attention_costs, state_bytes, weight_bytes
from pellucid.measure.suite import placeholder_ids, temporary_tables
from pellucid.plan.pipeline_stages import PART
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import Chunk

ROWS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = (1, 8, 16, 32, 64, 128, 256)
SHALLOW, DEEP = PAGE + 1, 16 * PAGE + 1
"""Context tokens at which attention is timed: whole pages and one token.

The whole pages are in the prefix cache, so all sequences begin to decode together.
"""
DEEP_ROWS, MIN_CONTEXT = 8, 160
DECODED, ROUNDS = 32, 5  # generated tokens of a measured sequence, and repetitions of a measurement
QUIET_SHARE = 0.8  # processor share below which a machine is busy
MIN_STEP = 1e-6  # minimum seconds of a step without its attention
NOISE_SECONDS, NOISE_TOTAL = 0.05, 6.0  # seconds of one noise value, and of all noise values
MEMORY_SHARE, INT8_SHARE = 0.75, 0.6
"""Fractions of the memory and int8 roofs that estimates assume. Measured models reach about these fractions."""
Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Measurement:
    """How certain measured step times are.

    Attributes:
        spread: half the range of the times of the rounds, relative to their median; the median of all kinds of steps.
        processor_share: processor time of the threads during steps, divided by the time of the steps and the number of
            threads. Threads compute or poll during steps, so the share is near 1 unless other programs run.
    """

    spread: float
    processor_share: float

    @property
    def busy(self) -> bool:
        return self.processor_share < QUIET_SHARE


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step, as a function of its rows and tokens.

    Attributes:
        rows: seconds of a step with n decode rows, by n.
        prompts: seconds of a step with n prompt tokens, by n.
        row_attention: seconds for each token that a row attends to.
        prompt_attention: seconds for each token that a prompt token attends to.
        windows: the same two numbers for layers with a sliding window: (window, seconds of a row, of a prompt token).
        request: seconds of a request before its first step.
        stream: seconds that each other streamed response adds to ``request``.
        server_step: seconds that a server adds to a step.
        server_row: seconds that a server adds for each row of a step.
        hop: seconds that a step takes for messages between stages.
        noise: slowdowns relative to the median time, ``NOISE_SECONDS`` apart. They represent other work on the machine.
            They matter because the scheduler's estimate of a step's time follows the slowest steps.
        measurement: how certain the times are; None: they are estimated.
    """

    rows: Mapping[int, float]
    prompts: Mapping[int, float]
    row_attention: float = 0.0
    prompt_attention: float = 0.0
    windows: tuple[tuple[int, float, float], ...] = ()
    request: float = 0.0
    stream: float = 0.0
    server_step: float = 0.0
    server_row: float = 0.0
    hop: float = 0.0
    noise: tuple[float, ...] = (1.0,)
    measurement: Measurement | None = None
    _lines: dict[str, tuple[list[int], list[float]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        for name, times in (("rows", self.rows), ("prompts", self.prompts)):
            ordered = sorted(times.items())
            self._lines[name] = [n for n, _ in ordered], [seconds for _, seconds in ordered]

    def step(self, rows: int, seen: int, prompts: int, prompts_seen: int) -> float:
        """Return the seconds of a step of ``rows`` decode rows and ``prompts`` prompt tokens.

        The rows attend to ``seen`` tokens in all, the prompt tokens to ``prompts_seen``.
        """
        seconds = self.row_attention * seen + self.prompt_attention * prompts_seen
        for window, of_row, of_prompt in self.windows:
            seconds += of_row * min(seen, rows * window) + of_prompt * min(prompts_seen, prompts * window)
        seconds += self.hop + self.server_step + self.server_row * rows
        if not prompts:
            return self._at("rows", rows) + seconds
        sampling = max(0.0, self._at("rows", rows) - self._at("prompts", rows)) if rows else 0.0
        return self._at("prompts", rows + prompts) + sampling + seconds

    def next_step(self, rows: int, seen: int) -> float:
        windows = sum(of_row for window, of_row, _ in self.windows if seen < rows * window)
        return rows * (self.row_attention + windows)

    def slowdown(self, when: float) -> float:
        return self.noise[int(when / NOISE_SECONDS) % len(self.noise)]

    def _at(self, name: str, count: int) -> float:
        """Interpolate linearly between the two nearest sizes. Beyond the last size, extend the last line."""
        numbers, seconds = self._lines[name]
        if len(numbers) == 1:
            return seconds[0] * count / numbers[0]
        at = min(max(bisect.bisect_left(numbers, count), 1), len(numbers) - 1)
        x0, x1, y0, y1 = numbers[at - 1], numbers[at], seconds[at - 1], seconds[at]
        return y0 + (y1 - y0) * (count - x0) / (x1 - x0)

    def on(self, other: Rates, here: Rates, work: PlanWork) -> StepCosts:
        """Return the costs on a machine with other rates: times of steps scale with the roofline times of the steps."""

        def ratio(tokens: int, outputs: int) -> float:
            return work.seconds(tokens, outputs, other) / work.seconds(tokens, outputs, here)

        return replace(
            self,
            rows={n: seconds * ratio(n, n) for n, seconds in self.rows.items()},
            prompts={n: seconds * ratio(n, 0) for n, seconds in self.prompts.items()},
            row_attention=self.row_attention * here.read / other.read,
            prompt_attention=self.prompt_attention * here.multiply / other.multiply,
            windows=tuple(
                (window, of_row * here.read / other.read, of_prompt * here.multiply / other.multiply)
                for window, of_row, of_prompt in self.windows
            ),
        )

    def over(self, stages: int, link: Link, work: PlanWork) -> StepCosts:
        """Return the costs of a model over ``stages`` machines like this one. Each step passes through all stages.

        The parts of a long prompt run in all stages at once (``cluster/staged_runner.py``); decode rows do not.
        """
        if stages == 1:
            return self
        vectors = (stages - 1) * work.border_bytes / link.bytes_per_second
        return replace(
            self,
            rows={n: seconds + n * vectors for n, seconds in self.rows.items()},
            prompts={n: _through(n, seconds, stages) + n * vectors for n, seconds in self.prompts.items()},
            prompt_attention=self.prompt_attention / stages,
            windows=tuple((window, of_row, of_prompt / stages) for window, of_row, of_prompt in self.windows),
            hop=stages * link.seconds,
        )


def _through(tokens: int, seconds: float, stages: int) -> float:
    """Return the time of a step in parts, pipelined through stages that take equal times."""
    parts = -(-tokens // PART)
    return seconds * (parts + stages - 1) / (parts * stages)


class PlanWork:
    """Bytes that the steps of a plan read, and their multiply-adds. ``width`` is the width of the residual stream."""

    def __init__(self, plan: Plan, width: int) -> None:
        self._plan, self.border_bytes = plan, 4 * width
        self._costs: dict[tuple[int, int], Cost] = {}

    def seconds(self, tokens: int, outputs: int, rates: Rates) -> float:
        """Return the roofline time of a step, its lower bound."""
        key = tokens, outputs
        if key not in self._costs:
            counts = {"tokens": tokens, "outputs": outputs, "sequences": outputs, "once": 1}
            rows = [(op, counts[op.rows]) for op in self._plan.operations]
            self._costs[key] = Cost(
                sum(weight_bytes(op, count) for op, count in rows) + outputs * state_bytes(self._plan),
                sum(op.multiply_adds * count for op, count in rows),
            )
        return self._costs[key].seconds(rates)

    def estimated(self, machine: Machine) -> StepCosts:
        """Estimate the step costs of a model that is not loaded, at ``MEMORY_SHARE`` and ``INT8_SHARE`` of the roofs.

        The costs include the weights, the keys and values that each row reads, the states that each row reads and
        writes, and the products of attention over a prompt, at the rate of 8-bit products.
        """
        rates = Rates(MEMORY_SHARE * machine.rates.read, INT8_SHARE * machine.rates.multiply)
        seen = [
            (cost.window, cost.nbytes / rates.read, cost.multiply_adds / rates.multiply)
            for cost in attention_costs(self._plan)
        ]
        return StepCosts(
            {n: self.seconds(n, n, rates) for n in ROWS},
            {n: self.seconds(n, 0, rates) for n in PROMPTS},
            row_attention=sum(of_row for window, of_row, _ in seen if not window),
            prompt_attention=sum(of_prompt for window, _, of_prompt in seen if not window),
            windows=tuple(of_window for of_window in seen if of_window[0]),
        )


def measure_steps(llm: LLM, progress: Progress = lambda done, total, what: None) -> StepCosts:
    """Measure the step costs on this machine, as medians of several rounds, and their noise.

    ``progress`` is called with the progress before each measurement. Raises InvalidRequest if the context is too small
    for the measurement.
    """
    limits = llm.runner.limits
    if llm.context < MIN_CONTEXT:
        raise InvalidRequest(
            f"the context is {llm.context:,} tokens; a measurement needs {MIN_CONTEXT}: use a larger --context"
        )
    shallow = min(SHALLOW, llm.context - DECODED - 1)
    deep = min(DEEP, llm.context - DECODED - 1)
    prompts = [n for n in PROMPTS if n <= min(limits.tokens, llm.context - 1)]
    part = prompts[-1]
    before = (deep - 1) // part * part
    work: dict[tuple[str, int], Callable[[], float]] = {
        **{("texts", n): partial(_decode_seconds, llm, n, shallow) for n in ROWS if n <= limits.sequences},
        **{("tokens of a prompt", n): partial(_prefill_seconds, llm, n, 0) for n in prompts},
        ("texts after many tokens", DEEP_ROWS): partial(_decode_seconds, llm, DEEP_ROWS, deep),
        ("tokens of a prompt after many", part): partial(_prefill_seconds, llm, part, before),
    }
    total, measured = ROUNDS * len(work) + 1, {key: list[float]() for key in work}
    for number in range(ROUNDS):
        for at, ((what, n), measure) in enumerate(work.items()):
            progress(number * len(work) + at, total, f"{n} {what}")
            measured[what, n].append(measure())
    progress(total - 1, total, "noise of step times")
    began, spent = time.perf_counter(), time.process_time()
    noise = _noise(llm, prompts[min(3, len(prompts) - 1)])
    share = (time.process_time() - spent) / (time.perf_counter() - began) / llm.runner.threads
    times: dict[str, dict[int, float]] = {}
    for (what, n), seconds in measured.items():
        times.setdefault(what, {})[n] = statistics.median(seconds)
    rows, reading = times["texts"], times["tokens of a prompt"]
    more = times["texts after many tokens"][DEEP_ROWS] - rows[DEEP_ROWS]
    row_attention = max(more, 0.0) / (DEEP_ROWS * max(deep - shallow, 1))
    more = times["tokens of a prompt after many"][part] - reading[part]
    prompt_attention = max(more, 0.0) / (part * max(before, 1))
    middle = shallow + DECODED / 2
    return StepCosts(
        {n: max(seconds - n * middle * row_attention, MIN_STEP) for n, seconds in rows.items()},
        {n: max(seconds - n * n / 2 * prompt_attention, MIN_STEP) for n, seconds in reading.items()},
        row_attention,
        prompt_attention,
        noise=noise,
        measurement=Measurement(statistics.median(map(_spread, measured.values())), min(share, 1.0)),
    )


def _spread(seconds: Sequence[float]) -> float:
    return (max(seconds) - min(seconds)) / (2 * float(statistics.median(seconds)))


def _decode_seconds(llm: LLM, count: int, depth: int) -> float:
    """Return the median seconds of an engine step of ``count`` different sequences after ``depth`` tokens."""
    ids, size = placeholder_ids(llm.runner, depth), llm.inputs.vocabulary
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 0, "prompt_lookup": False}
    prompts = [[(n + 1) % size, *ids[1:]] for n in range(count)]
    run_together([llm.request(prompt, max_new_tokens=1, **options) for prompt in prompts])  # fills the prefix cache
    times, gate = list[float](), threading.Event()
    llm.engine.between_steps(gate.wait)
    groups = [llm.request(prompt, max_new_tokens=DECODED, **options) for prompt in prompts]
    for group in groups:
        group.start(lambda token: times.append(time.perf_counter()))
    gate.set()
    for group in groups:
        group.wait()
    steps = np.array(times[count - 1 :: count])  # times of the last token of each step
    return float(np.median(np.diff(steps[DECODED // 4 :])))


def _prefill_seconds(llm: LLM, count: int, depth: int) -> float:
    """Return the seconds of a step that prefills ``count`` tokens after ``depth`` tokens, without outputs."""
    runner, ids = llm.runner, placeholder_ids(llm.runner, count)
    with temporary_tables(runner, 1) as (table,):
        for _ in range(depth // count):
            runner.forward([Chunk(table, ids, 0)])
        start = time.perf_counter()
        runner.forward([Chunk(table, ids, 0)])
        return time.perf_counter() - start


def _noise(llm: LLM, count: int) -> tuple[float, ...]:
    start, samples = time.perf_counter(), list[tuple[float, float]]()
    while not samples or samples[-1][0] < NOISE_TOTAL:
        seconds = _prefill_seconds(llm, count, 0)
        samples.append((time.perf_counter() - start, seconds))
    usual = statistics.median(seconds for _, seconds in samples)
    every: dict[int, list[float]] = {}
    for when, seconds in samples:
        every.setdefault(int(when / NOISE_SECONDS), []).append(seconds / usual)
    series, last = list[float](), 1.0
    for at in range(int(NOISE_TOTAL / NOISE_SECONDS)):
        last = statistics.fmean(every[at]) if at in every else last
        series.append(last)
    return tuple(series)
