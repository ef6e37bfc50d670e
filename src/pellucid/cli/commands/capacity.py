"""pellucid capacity MODEL: number of machines for a load, by a simulation of replicas that run the real scheduler."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pellucid.cli import common, planning
from pellucid.cli.command import command
from pellucid.cli.options import Loading
from pellucid.errors import InvalidRequest, brief, one_line
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.capacity.layouts import ModelSize
    from pellucid.capacity.machines import Machine
    from pellucid.capacity.search import Goals, KindCapacity
    from pellucid.capacity.simulate import Traffic
    from pellucid.capacity.step_costs import Measurement, StepCosts

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)")
MAX_RATE, MAX_TOKENS, MAX_SECONDS = 1e6, 1 << 20, 1e6
MAX_CONVERSATION = 1 << 17
"""Maximum tokens of a conversation, because a simulation of longer conversations takes minutes."""


@command("capacity")
def capacity_command(
    model: common.Model,
    rate: Any = common.number("Requests per second in the busiest hour.", ...),
    ttft: str = common.text(
        "TIME",
        "Goal for the time to the first token, such as 1s or 300ms. 95 of 100 requests must reach this goal.",
        "1s",
    ),
    tpot: str = common.text(
        "TIME", "Goal for the time per output token after the first token, for 95 of 100 requests.", "100ms"
    ),
    prompt: str = common.text(
        "N", "New tokens of a prompt: 256, 64-256 (uniform), or 128~32 (mean ~ standard deviation).", "256"
    ),
    tokens: str = common.text("N", "Tokens of an answer, in the same forms as --prompt.", "128"),
    shared: Any = common.count("Tokens of --prompt that are a system prompt, which prompts share.", 0),
    prefixes: Any = common.count("Different system prompts, chosen at random.", 1),
    turns: Any = common.count("Requests of a conversation; each prompt contains the conversation so far.", 1),
    think: str = common.text("TIME", "Time from an answer to the next request of the conversation.", "20s"),
    day: str = common.text("NAME", "Change of the rate over the day: office (busy in the daytime) or flat.", "office"),
    machines: planning.MachinesFile = None,
    seed: Any = common.count("Seed of the simulated requests.", 0),
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Compute the number of machines that a load needs, and the first limit that a higher load reaches.

    Steps are timed on this machine, through a server with clients, and scaled to other machines by the rates of their
    memory and integer units. Then a day is simulated: requests come at random times, the router sends them to replicas,
    and the replicas run the scheduler, the prefix cache and the steps of `pellucid serve`. A shape on paper (a
    config.json, or a name such as llama-3-70b) has no weights and cannot be timed. For a shape, the command assumes
    that steps reach usual fractions of the rates.
    """
    from pellucid.capacity.search import DAYS, Goals
    from pellucid.capacity.simulate import Traffic
    from pellucid.measure.paper import on_paper
    from pellucid.measure.server_load import Lengths

    traffic = Traffic(
        Lengths.of("prompt", prompt),
        Lengths.of("tokens", tokens),
        rate=real("rate", rate, 0.0, MAX_RATE, above=True),
        shared=whole("shared", shared, 0, MAX_TOKENS),
        prefixes=whole("prefixes", prefixes, 1, MAX_TOKENS),
        turns=whole("turns", turns, 1, 1000),
        think=_seconds("think", think),
        seed=whole("seed", seed, 0, 1 << 62),
    )
    goals = Goals(_seconds("ttft", ttft), _seconds("tpot", tpot))
    if day not in DAYS:
        raise InvalidRequest(f"day={brief(day)}: must be one of {', '.join(DAYS)}")
    measured = not on_paper(model)
    if not measured:
        planning.refuse_unused_pin(loading)
    size = planning.model_size(model, loading)
    _refuse_long(traffic, size.limits.context)
    here = planning.this_machine_once(loading.threads)
    kinds = planning.machines_of(machines, here)
    stages = _stages(size, kinds.kinds)
    costs = planning.step_costs(model, size, kinds, here, loading, measured=measured, served=True)
    results = [
        _capacity(size, traffic, goals, kind, of_one.over(count, kinds.link, size.work), count, DAYS[day])
        for kind, of_one, count in zip(kinds.kinds, costs, stages)
        if count
    ]
    if json:
        common.print_json(_document(size, traffic, results, costs[0].measurement))
        return
    for at, result in enumerate(results):
        if at:
            print()
        _show(size, goals, result, traffic, costs[0])


def _seconds(name: str, text: str) -> float:
    match = DURATION.fullmatch(text.strip())
    seconds = float(match[1][:20]) * (1e-3 if match[2] == "ms" else 1.0) if match else 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidRequest(
            f"{name}={brief(text)}: must be a time above 0 and at most {MAX_SECONDS:,.0f} s, such as 1s or 300ms"
        )
    return seconds


def _refuse_long(traffic: Traffic, context: int) -> None:
    if traffic.shared > traffic.prompt.low:
        raise InvalidRequest(
            f"shared={traffic.shared}: must be at most {traffic.prompt.low:,}, the tokens of the shortest prompt: "
            "lower --shared, or raise --prompt"
        )
    for limit, what in ((context, "the context"), (MAX_CONVERSATION, "the limit of a simulation")):
        if traffic.longest > limit:
            raise InvalidRequest(
                f"conversations have up to {traffic.longest:,} tokens; {what} is {limit:,}: lower --prompt, --tokens "
                "or --turns, or raise --context"
            )


def _stages(size: ModelSize, kinds: Sequence[Machine]) -> list[int]:
    """Number of machines (stages) of a replica, for each kind of machine: 0 if the model does not fit.

    A message tells which kinds of machines are left out.
    """
    from pellucid.capacity.layouts import fewest_stages

    stages, refusals = list[int](), list[InvalidRequest]()
    for kind in kinds:
        try:
            stages.append(fewest_stages(size, kind))
        except InvalidRequest as error:
            stages.append(0)
            refusals.append(error)
    if len(refusals) == len(stages):
        raise refusals[-1]
    for refusal in refusals:
        print(f"left out: {refusal}", file=sys.stderr)
    return stages


def _capacity(
    size: ModelSize,
    traffic: Traffic,
    goals: Goals,
    kind: Machine,
    costs: StepCosts,
    stages: int,
    shape: Sequence[float],
) -> KindCapacity:
    """Number of machines of a kind that the traffic needs, by simulation."""
    from pellucid.capacity.search import KindCapacity, Search

    room = size.replica_capacity(kind.memory)
    with common.progress(still=True) as bars:
        return KindCapacity.of(kind, stages, Search(traffic, goals, room, costs, bars.simulating), shape)


def _show(size: ModelSize, goals: Goals, result: KindCapacity, traffic: Traffic, measured: StepCosts) -> None:
    from rich.filesize import decimal

    machine = result.machine
    each = f"{result.stages} machines each, " if result.stages > 1 else ""
    request = _request_tokens(traffic)
    print(
        f"{one_line(size.name)} on {one_line(machine.name)}: {each}{machine.cores} cores, {decimal(machine.memory)}, "
        f"{machine.speed}\n"
        f"keys and values: {decimal(size.sequence_bytes(1))} for a token, {decimal(size.sequence_bytes(request))} for "
        f"a request of {request:,} tokens\n"
    )
    if not result.day:
        print(
            f"these machines cannot reach {goals.first_token:g} s to the first token and "
            f"{goals.per_token * 1e3:g} ms per token, even for a single request\n"
            f"{planning.certainty(measured)}"
        )
        return
    columns = ("hours", ">requests/s", ">machines", ">tokens/s", ">first token", ">per token", ">busy", ">prefix hits")
    rows = []
    for hours in result.day:
        times, machines = hours.outcome, hours.replicas * result.stages
        rates = (f"{hours.rate:,.4g}", f"{machines:,}", f"{times.tokens_per_second:,.0f}")
        waits = (common.milliseconds(times.first_token), common.milliseconds(times.per_token))
        rows.append((_hours(hours.hours), *rates, *waits, f"{times.busy:.0%}", f"{times.hits:.0%}"))
    common.print_table(*columns, rows=rows)
    machine_hours = sum(len(hours.hours) * hours.replicas * result.stages for hours in result.day)
    print(
        f"\n{result.machines:,} machines are enough in the busiest hour. A day takes {machine_hours:,} machine-hours "
        f"if the number of machines follows the load, and {24 * result.machines:,} if it does not. Times are in "
        "milliseconds: median, p95, p99."
    )
    print(planning.certainty(measured) + machine_range(result, measured))
    if result.machines > machine.count and machine.source != "measured":
        print(f"there are only {machine.count:,} of {one_line(machine.name)}")
    if failure := result.first_failure:
        print(f"at {failure.times:g} times the load, {failure.what} fails first: {failure.why}")
    if front := result.front_processes:
        print(
            f"in front of the replicas, the router takes {front.router_seconds * 1e6:,.0f} µs for a request, and "
            f"{front.ingresses:,} server processes forward the tokens"
        )


def machine_range(result: KindCapacity, measured: StepCosts) -> str:
    """The number of machines for the measured range of step times, in proportion."""
    if measured.measurement is None:
        return ""
    spread = measured.measurement.spread
    low, high = (math.ceil(result.machines * factor - 1e-9) for factor in (max(1 - spread, 0.0), 1 + spread))
    return f" In proportion, {max(low, 1):,} to {high:,} machines are needed." if low < high else ""


def _request_tokens(traffic: Traffic) -> int:
    """Mean number of tokens, prompt and answer, of the last request of a conversation."""
    return traffic.turns * (traffic.prompt.mean_length + traffic.tokens.mean_length)


def _hours(hours: tuple[int, ...]) -> str:
    """Hours of a day as ranges: 9-11, 14-16."""
    from pellucid.trace.selection import runs_of

    return ", ".join(f"{first}-{first + count - 1}" if count > 1 else str(first) for first, count in runs_of(hours))


def _document(
    size: ModelSize, traffic: Traffic, results: list[KindCapacity], measurement: Measurement | None
) -> dict[str, Any]:
    return {
        "model": size.name,
        "rate": traffic.rate,
        "measurement": asdict(measurement) if measurement else None,
        "key_value_bytes_per_token": size.sequence_bytes(1),
        "key_value_bytes_per_request": size.sequence_bytes(_request_tokens(traffic)),
        "machines": [
            {
                "machine": asdict(result.machine),
                "stages": result.stages,
                "machines": result.machines if result.day else None,
                "day": [asdict(hours) for hours in result.day],
                "breaks": asdict(result.first_failure) if result.first_failure else None,
                "front": asdict(result.front_processes) if result.front_processes else None,
            }
            for result in results
        ],
    }
