"""Models and machines for commands that plan: the size of a model (a file, or a shape on paper), and its step times."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import structs

from pellucid.cli import common
from pellucid.cli.loading import load

if TYPE_CHECKING:
    from pellucid.capacity.layouts import ModelSize
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
    """Sizes of a model. No weights are loaded.

    Raises:
        InvalidRequest: the model is not a language model, or the context is out of range.
    """
    from pellucid.capacity.layouts import ModelSize
    from pellucid.loading import open_model, step_limits
    from pellucid.measure.paper import on_paper, paper_model
    from pellucid.weights.checkpoint import stored_bytes

    if on_paper(model):
        shape = paper_model(model, loading.activation_bits, loading.kv_cache)
        spec = _simulated(shape.spec, shape.name)
        context = loading.context_of(spec.context, spec.max_context)
        return ModelSize(
            shape.name, spec, shape.plan, step_limits(spec, context), shape.file_bytes[shape.form]
        )
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
    """``spec``, if its steps can be simulated. Raises InvalidRequest otherwise."""
    from pellucid.errors import InvalidRequest
    from pellucid.errors.messages import shown

    if not spec.generates:
        raise InvalidRequest(f"{shown(name)} generates no text: name a language model")
    if spec.encoder:
        raise InvalidRequest(
            f"{shown(name)} is an encoder-decoder, whose steps are not simulated: name a decoder"
        )
    return spec


def refuse_unused_pin(loading: LoadOptions) -> None:
    """Refuse ``--pin`` if no step is measured, because the option then has no effect."""
    from pellucid.errors import InvalidRequest

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
