"""pellucid bench MODEL: speed of a model, relative to the limits of this machine. bench serve URL: speed of a
server."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import CommandGroup
from pellucid.cli.options import Loading, load
from pellucid.errors import InvalidRequest, brief, one_line
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.llm import LLM
    from pellucid.load_options import LoadOptions
    from pellucid.measure.cost import Rates
    from pellucid.measure.roofs import Figure, Profile
    from pellucid.measure.suite import SuiteOptions, Workload


def server_load(
    url: str = common.argument("URL", "Address of the server: http://HOST:PORT.", ...),
    model: str | None = common.text("MODEL", "Model to request. Default: the server's first."),
    clients: list[int] | None = common.count(
        "Number of clients that send requests at the same time. Each client waits for the response before its next "
        "request. May be repeated. Default: 16."
    ),
    rate: list[float] | None = common.number(
        "Instead of --clients: requests per second, at random times. May be repeated."
    ),
    requests: int = common.count("Requests for each number of --clients, or each --rate.", 64),
    prompt: str = common.text(
        "N", "Words of a prompt: 256, 64-256 (uniform), or 128~32 (mean ~ standard deviation).", "256"
    ),
    shared: int = common.count("Words at the beginning that all prompts share.", 128),
    tokens: str = common.text("N", "Tokens of an answer, in the same forms as --prompt.", "128"),
    chat: bool = common.flag("--chat", "Send chat completions, not text completions."),
    body: str | None = common.text("JSON", "JSON object with further fields of each request."),
    key: str | None = common.text("KEY", "API key of the server. Default: PELLUCID_KEY."),
    seed: int = common.count("Seed of the random words, lengths and times.", 0),
    json: common.Json = False,
) -> None:
    """Measure the latency and throughput of a server with OpenAI's API, as clients under load see them.

    Times are in milliseconds: median, 95th and 99th percentile. The columns are the time to the first token, the time
    per token after the first token (the mean over each request), and the time between two pieces of text.
    """
    from pellucid.measure.server_load import Lengths, ServerLoad, measure_server, models_of

    if clients and rate:
        raise InvalidRequest("--clients and --rate exclude each other: remove one")
    key, url = common.secret("PELLUCID_KEY") if key is None else key, url.rstrip("/").removesuffix("/v1")
    load = ServerLoad(
        url,
        model or _first(models_of(url, key), url),
        "chat" if chat else "completions",
        key,
        requests,
        Lengths.of("prompt", prompt),
        whole("shared", shared, 0, 1 << 20),
        Lengths.of("tokens", tokens),
        seed,
        _fields(body),
    )
    levels: list[dict[str, Any]] = (
        [{"rate": level} for level in rate] if rate else [{"clients": level} for level in clients or [16]]
    )
    results = []
    for level in levels:
        with common.progress() as bars:
            results.append(measure_server(load, **level, progress=bars.answering))
    if json:
        common.print_json(results[0] if len(results) == 1 else results)
    else:
        _show(results)
    if all(result["failed"] == result["requests"] for result in results):
        raise InvalidRequest(f"no request was answered: {results[0]['errors'][0]}")


def _first(models: list[str], url: str) -> str:
    if not models:
        raise InvalidRequest(f"{url} lists no model: name one with --model")
    return models[0]


def _fields(body: str | None) -> dict[str, Any]:
    import json

    if body is None:
        return {}
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"body={brief(body)}: must be a JSON object")
    return fields


def _show(results: list[dict[str, Any]]) -> None:
    level = "clients" if "clients" in results[0] else "rate"
    columns = (">tokens/s", ">requests/s", ">first token", ">per token", ">gap", ">longest gap", ">failed")
    rows = [
        (
            *(f"{one[level]:g}", f"{one['tokens_per_second']:.1f}", f"{one['requests_per_second']:.2f}"),
            *(common.milliseconds(one[name]) for name in ("first_token", "per_token", "gap")),
            *(f"{1e3 * one['gap']['longest']:.0f}", str(one["failed"])),
        )
        for one in results
    ]
    common.print_table(f">{level}", *columns, rows=rows)
    for problem in dict.fromkeys(problem for result in results for problem in result["errors"]):
        print(problem)


FLOAT_WEIGHTS = "the roofs do not count float products, so prefill and sentences stay far below the roof of the memory"
THREE_PRODUCTS = (
    "24-bit activations take three int8 products for each multiply-add, so the limit is 33 % of an int8 roof"
)


def model_speed(
    model: common.Model,
    prompt: list[int] | None = common.count("Measure prefill of a prompt of N tokens; 0: none. May be repeated."),
    depth: list[int] | None = common.count("Measure decode after N tokens of context; 0: none. May be repeated."),
    batch: list[int] | None = common.count("Measure decode of N sequences together; 0: none. May be repeated."),
    tokens: int | None = common.count("Tokens that each decode generates. Default: 64."),
    rounds: int = common.count("Measurements of each speed; the table shows medians.", 5),
    profile: bool = common.flag(
        "--profile",
        "Also show the time of each kind of operation, in the last step of each --prompt (default: a full "
        "step) and in a decode step after each --depth (default: 16).",
    ),
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Measure the speed of a model, and compare it with the limits of this machine.

    Measures prefill and decode of a language model, or the sentence vectors of an encoder. The roof is the longer of
    two times: the time to read the weights, keys and values of a step ("memory"), and the time of the multiply-adds
    with weights ("int8"). Both times are measured in the same round, with kernels that do nothing else.
    """
    from pellucid.measure.roofs import measure, profile_step
    from pellucid.measure.suite import SuiteOptions, suite

    options = SuiteOptions(prompt, depth, batch, tokens)
    whole("rounds", rounds, 1, 1000)
    llm = load(model, loading, lambda inputs: suite(inputs.spec, inputs.context, options))
    workloads, notes = suite(llm.spec, llm.context, options)
    with common.progress(still=True) as bars:
        figures = measure(llm.runner, workloads, rounds, bars.measuring)
        steps = steps_to_profile(llm, options, workloads) if profile else []
        profiles = [profile_step(llm.runner, *step, rounds, bars.measuring) for step in steps]
    if profile and not steps:
        notes.append("--profile has no steps to show, because --prompt and --depth are 0")
    if loading.precise and any(figure.bound == "int8" for figure in figures):
        notes.append(THREE_PRODUCTS)
    if not all(figure.cost.multiply_adds for figure in figures):
        notes.append(FLOAT_WEIGHTS)
    if json:
        common.print_json(_document(llm, loading.precise, figures, profiles, notes))
        return
    _bench_show(llm, loading, figures)
    for note in notes:
        print(note)
    for each in profiles:
        _show_profile(each)


def steps_to_profile(llm: LLM, options: SuiteOptions, workloads: Sequence[Workload]) -> list[tuple[int, int]]:
    """Steps to profile: (tokens in the step, tokens before the step).

    The steps are the last step of each requested prompt, and the decode step after each requested depth. The defaults
    are a full prefill step, and a decode step after the shortest default depth. An encoder has a step of each measured
    length.
    """
    from pellucid.measure.suite import DEPTHS, DecodeWorkload, PrefillWorkload

    if not llm.spec.generates:
        return list(dict.fromkeys((load.tokens, 0) for load in workloads))
    prompts = [load for load in workloads if isinstance(load, PrefillWorkload)]
    depths = [load.depth for load in workloads if isinstance(load, DecodeWorkload) and load.sequences == 1]
    if options.prompts is None:
        prompts = [PrefillWorkload(min(llm.runner.limits.tokens, llm.context))]
    if options.depths is None:
        depths = [min(DEPTHS[0], llm.context - 1)]
    last = [[*load.steps(llm.runner)][-1][0] for load in prompts]
    return [(len(chunk.tokens), chunk.table.length) for chunk in last] + [(1, depth) for depth in depths]


def _bench_show(llm: LLM, options: LoadOptions, figures: Sequence[Figure]) -> None:
    runner, unit = llm.runner, figures[0].workload.unit
    print(
        f"{one_line(llm.spec.name)}, threads {runner.threads}, activations of {options.activation_bits} bits, "
        f"context {llm.context:,}, medians of {len(figures[0].rates)}\n"
    )
    rows = [
        (
            *(figure.workload.what, _speed(figure.median), f"{figure.spread:.0%}"),
            *(_speed(figure.roof), figure.bound, f"{figure.share:.0%}"),
        )
        for figure in figures
    ]
    common.print_table("", f">{unit}/s", ">±", ">roof", "bound by", ">share", rows=rows)
    read, multiply = _machine_rates(figures)
    print(
        f"\nthis machine reads {read / 1e9:.1f} GB/s and computes {multiply / 1e9:,.0f} int8 GMAC/s (10⁹ multiply-adds "
        "per second)"
    )


def _machine_rates(figures: Sequence[Figure]) -> tuple[float, float]:
    """Medians of the machine's rates: bytes read per second, and multiply-adds per second."""
    rates: list[Rates] = [rates for figure in figures for rates in figure.rates]
    return statistics.median(r.read for r in rates), statistics.median(r.multiply for r in rates)


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _show_profile(profile: Profile) -> None:
    from pellucid.measure.roofs import combined

    print(f"\n{profile.what}")
    shown = common.table("|stage", "operation", ">count", ">ms", ">part", ">reached", ">share", gap=1)
    for (stage, kernel), timed in profile.kinds().items():
        shown.add_row(stage, kernel, *_cells(timed, profile))
    shown.add_row("total", "", *_cells(combined(profile.timed), profile), style="bold")
    common.show(shown)


def _cells(timed: Any, profile: Profile) -> tuple[str, ...]:
    share = timed.share(profile.rates)
    return (
        str(timed.count),
        f"{timed.seconds * 1e3:.3f}",
        f"{timed.seconds / profile.total.seconds:.1%}",
        timed.rate(profile.rates),
        "" if share is None else f"{share:.0%}",
    )


def _document(
    llm: LLM, precise: bool, figures: Sequence[Figure], profiles: Sequence[Profile], notes: list[str]
) -> dict[str, Any]:
    from pellucid.measure.roofs import facts

    read, multiply = _machine_rates(figures)
    return {
        "model": llm.spec.name,
        "threads": llm.runner.threads,
        "context": llm.context,
        "precise": precise,
        "read_bytes_per_second": round(read),
        "int8_multiply_adds_per_second": round(multiply),
        "figures": [
            {
                "what": figure.workload.what,
                "kind": figure.workload.kind,
                **asdict(figure.workload),
                "unit": figure.workload.unit,
                "per_second": figure.median,
                "spread": figure.spread,
                "roof_per_second": figure.roof,
                "bound": figure.bound,
                "share": figure.share,
                "rounds": list(figure.per_second),
            }
            for figure in figures
        ],
        "profiles": [
            {
                "what": profile.what,
                "seconds": profile.total.seconds,
                "operations": [
                    {
                        "stage": stage,
                        "operation": kernel,
                        "count": timed.count,
                        "seconds": timed.seconds,
                        "bytes": timed.cost.nbytes,
                        "multiply_adds": timed.cost.multiply_adds,
                        "share_of_roof": timed.share(profile.rates),
                    }
                    for (stage, kernel), timed in profile.kinds().items()
                ],
            }
            for profile in profiles
        ],
        "notes": notes,
        "machine": facts(),
    }


COMMAND = CommandGroup(
    "bench",
    "Measure the speed of a model on this machine (bench MODEL), or of a server under load (bench serve URL).",
    {"model": model_speed, "serve": server_load},
    default="model",
)
