"""Models and machines for commands that plan: the size of a model, and its speed on one machine, on replicas and in
stages."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from pellucid.cli import common
from pellucid.cli.options import SHARED, load
from pellucid.errors import InvalidRequest, one_line, shown
from pellucid.load_options import LoadOptions

if TYPE_CHECKING:
    from pellucid.capacity.layouts import Layout, ModelSize
    from pellucid.capacity.machines import Machine, Machines
    from pellucid.capacity.step_costs import StepCosts
    from pellucid.load_options import LoadOptions
    from pellucid.model.spec import ModelSpec

MachinesFile = Annotated[
    str | None,
    typer.Option(
        "--machines",
        help="JSON file that lists machines (docs/guides/scale-out.md), or `here` for this machine.",
        metavar="FILE",
    ),
]
HERE = "here"


def model_size(model: str, loading: LoadOptions) -> ModelSize:
    """Sizes of a model. No weights are loaded."""
    from pellucid.capacity.layouts import ModelSize
    from pellucid.loading import open_model, step_limits
    from pellucid.measure.paper import on_paper, paper_model
    from pellucid.weights.checkpoint import stored_bytes

    if on_paper(model):
        shape = paper_model(model, loading.activation_bits, loading.kv_cache)
        spec = _simulated(shape.spec, shape.name)
        context = loading.context_of(spec.context, spec.max_context)
        return ModelSize(shape.name, spec, shape.plan, step_limits(spec, context), shape.file_bytes[shape.form])
    with common.progress() as bars:
        opened = open_model(model, loading, progress=bars)
    try:
        context = opened.inputs.context
        spec = _simulated(structs.replace(opened.model.spec, context=context), opened.model.spec.name)
        limits = step_limits(spec, context)
        return ModelSize(spec.name, spec, opened.plan(loading), limits, stored_bytes(opened.checkpoint))
    finally:
        opened.checkpoint.close()


def _simulated(spec: ModelSpec, name: str) -> ModelSpec:
    if not spec.generates:
        raise InvalidRequest(f"{shown(name)} generates no text: name a language model")
    if spec.encoder:
        raise InvalidRequest(f"{shown(name)} is an encoder-decoder, whose steps are not simulated: name a decoder")
    return spec


def refuse_unused_pin(loading: LoadOptions) -> None:
    """Refuse ``--pin`` if no step is measured, because the option then has no effect."""
    if loading.pin is not None:
        raise InvalidRequest(f"--pin {loading.pin}: nothing is measured on this machine: remove --pin")


def machines_of(file: str | None, here: Callable[[], Machine]) -> Machines:
    """The machines of a file, or this machine."""
    from pellucid.capacity.machines import Machines, read_machines

    return Machines((here(),)) if file in (None, HERE) else read_machines(Path(str(file)), here)


def certainty(costs: StepCosts) -> str:
    """A sentence about the certainty of step times."""
    if (measurement := costs.measurement) is None:
        return "Step times are assumed, not measured: the numbers are a first estimate."
    busy = " of a busy machine" if measurement.busy else ""
    return f"Step times{busy} differ by ±{measurement.spread:.0%} between rounds of the measurement."


def this_machine_once(threads: int | None) -> Callable[[], Machine]:
    """A function that returns this machine. Its first call measures the machine."""
    from pellucid.capacity.machines import this_machine

    return cache(lambda: this_machine(threads))


def step_costs(
    model: str,
    size: ModelSize,
    machines: Machines,
    here: Callable[[], Machine],
    loading: LoadOptions,
    *,
    measured: bool,
    served: bool,
) -> list[StepCosts]:
    """Return the step times of each kind of machine.

    With ``measured``, the times are measured on this machine and scaled to the other machines. Otherwise they are
    estimated. With ``served``, measured times include the overhead of a server. Estimates never include this overhead.
    """
    if not measured:
        return [size.work.estimated(kind) for kind in machines.kinds]
    own = _measured(model, here(), loading, served)
    if own.measurement and own.measurement.busy:
        print(
            f"this machine is busy: steps got {own.measurement.processor_share:.0%} of the processors' time, so the "
            "measured times are too long: measure again when no other program runs",
            file=sys.stderr,
        )
    return [own.on(kind.rates, here().rates, size.work) for kind in machines.kinds]


def _measured(model: str, here: Machine, loading: LoadOptions, served: bool) -> StepCosts:
    """Measure the times of a model's steps on this machine. With ``served``, they include a server's overhead."""
    from pellucid.capacity.layouts import ModelSize
    from pellucid.capacity.server_costs import with_server
    from pellucid.capacity.step_costs import measure_steps

    llm = load(model, structs.replace(loading, threads=here.cores))
    with llm, common.progress(still=True) as bars:
        costs = measure_steps(llm, bars.measuring)
        if not served:
            return costs
        return with_server(llm, costs, ModelSize.of(llm).replica_capacity(here.memory), bars.measuring)


def show_layouts(model: str, file: str, measured: bool, loading: LoadOptions, json: bool) -> None:
    """Print the layouts of a model on the machines of a file, and the recommended layout."""
    from pellucid.capacity.layouts import layouts, recommended
    from pellucid.measure.paper import on_paper

    if measured and on_paper(model):
        raise InvalidRequest(f"--measured: {model} is a shape on paper, without weights: remove --measured")
    if not measured:
        refuse_unused_pin(loading)
    size = model_size(model, loading)
    here = this_machine_once(loading.threads)
    machines = machines_of(file, here)
    costs = step_costs(model, size, machines, here, loading, measured=measured, served=False)
    possible = layouts(size, machines, costs)
    best = recommended(possible)
    if json:
        chosen = None if best is None else {**_row(best[0]), "why": best[1]}
        rows = [_row(layout) for layout in possible]
        common.print_json(
            {
                "model": size.name,
                "weight_bytes": size.weight_bytes,
                "context": size.limits.context,
                "context_bytes": size.context_bytes,
                "machines": [asdict(kind) for kind in machines.kinds],
                "layouts": rows,
                "recommended": chosen,
            }
        )
        return
    if possible:
        _show(size, possible, certainty(costs[0]) if measured else "")
    if best is None:
        largest = max(machines.kinds, key=lambda kind: kind.memory * kind.count)
        raise InvalidRequest(
            f"{size.name} does not fit on these machines; all machines of {largest.name} together have "
            f"{largest.count * largest.memory / 1e9:,.1f} GB: use a smaller format or --context, or more machines"
        )
    layout, why = best
    print(f"\nrecommended: {_name(layout)} of {one_line(layout.machine.name)}: {why}")
    if not on_paper(model):
        print(f"  {_command(model, layout, loading.threads)}{_options(loading)}")


def _show(size: ModelSize, possible: list[Layout], measured: str) -> None:
    """Print the layouts. ``measured`` is a sentence about measured step times; "": times are assumed."""
    from rich.filesize import decimal

    from pellucid.capacity.layouts import BATCH
    from pellucid.capacity.step_costs import INT8_SHARE, MEMORY_SHARE

    print(
        f"{one_line(size.name)}: {decimal(size.weight_bytes)} of weights, {decimal(size.context_bytes)} of keys and "
        f"values for a context of {size.limits.context:,} tokens\n"
    )
    depth = possible[0].depth
    numbers = (">GB each", ">decode tokens/s", f">with {BATCH} sequences", ">prefill tokens/s", ">cached tokens")
    rows = []
    for layout in possible:
        each = f"{layout.bytes_each / 1e9:.1f} of {layout.machine.memory / 1e9:.0f}"
        batched = f"{layout.batched_decode:,.4g}" + (f" with {layout.sequences}" if layout.sequences < BATCH else "")
        speeds = (f"{layout.decode:,.3g}", batched, f"{layout.prefill:,.4g}")
        cached = "any" if layout.cached_tokens is None else f"{layout.cached_tokens:,}"
        rows.append((one_line(layout.machine.name), _name(layout), each, *speeds, cached))
    common.print_table("machines", "|layout", *numbers, rows=rows)
    rates = {f"{one_line(layout.machine.name)}: {layout.machine.speed}" for layout in possible}
    basis = (
        f"Step times are measured on this machine, and scaled by these rates. {measured}"
        if measured
        else f"Step times are assumed: a step reaches {MEMORY_SHARE:.0%} of the memory's rate and {INT8_SHARE:.0%} of "
        "the integer units' rate. --measured measures step times on this machine instead."
    )
    print(
        "\n"
        + "\n".join(sorted(rates))
        + f"\n{basis}\nDecode rates are computed for a context of {depth:,} tokens. 'decode' is one sequence; 'with "
        f"{BATCH} sequences' is the sum of all replicas, with {BATCH} sequences (or the stated number) on each; "
        "'prefill' is one replica."
    )


def _name(layout: Layout) -> str:
    stages = f"{layout.stages} stages" if layout.stages > 1 else ""
    if layout.replicas > 1:
        return f"{layout.replicas:,} replicas" + (f" of {stages}" if stages else "")
    return stages or "one machine"


def _command(model: str, layout: Layout, threads: int | None) -> str:
    """The command that serves a layout. On one machine, it sets the threads only if ``threads`` are given."""
    model = shlex.quote(model)
    if layout.machines == 1:
        return f"pellucid serve {model}" + ("" if threads is None else f" --threads {layout.machine.cores}")
    stages = f" --stages {layout.stages}" if layout.stages > 1 else ""
    return (
        f"pellucid serve {model} --cluster auto --replicas {layout.replicas} --replica-cpus {layout.machine.cores}"
        + stages
    )


def _options(loading: LoadOptions) -> str:
    """Load options that differ from their defaults, as command line flags.

    ``threads`` is left out: ``_command`` sets ``--threads`` for one machine, and ``--replica-cpus`` for replicas.
    """
    flags = ""
    for name in SHARED:
        value = getattr(loading, name)
        if name != "threads" and value != getattr(LoadOptions(), name):
            flags += f" --{name.replace('_', '-')}" + ("" if value is True else f" {value}")
    return flags


def _row(layout: Layout) -> dict[str, Any]:
    return {
        "machines": layout.machine.name,
        "replicas": layout.replicas,
        "stages": layout.stages,
        "bytes_each": layout.bytes_each,
        "text_tokens_per_second": layout.decode,
        "texts_together_tokens_per_second": layout.batched_decode,
        "prompt_tokens_per_second": layout.prefill,
        "text_depth": layout.depth,
        "texts_together": layout.sequences,
        "context_tokens": layout.cached_tokens,
    }
