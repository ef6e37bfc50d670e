"""pellucid plan MODEL --machines FILE: speed of one machine, of replicas and of stages."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.loading import SHARED
from pellucid.cli.planning import (
    certainty,
    machines_of,
    model_size,
    refuse_unused_pin,
    step_costs,
    this_machine_once,
)
from pellucid.load_options import LoadOptions

if TYPE_CHECKING:
    from pellucid.capacity.layouts import Layout, ModelSize


def show_layouts(model: str, file: str, measured: bool, loading: LoadOptions, json: bool) -> None:
    """Print the layouts of a model on the machines of a file, and the recommended layout."""
    from pellucid.capacity.layouts import layouts, recommended
    from pellucid.errors import InvalidRequest
    from pellucid.errors.messages import one_line
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
    from pellucid.errors.messages import one_line

    print(
        f"{one_line(size.name)}: {decimal(size.weight_bytes)} of weights, {decimal(size.context_bytes)} of keys and "
        f"values for a context of {size.limits.context:,} tokens\n"
    )
    depth = possible[0].depth
    numbers = (
        "GB each",
        "decode tokens/s",
        f"with {BATCH} sequences",
        "prefill tokens/s",
        "cached tokens",
    )
    table = common.table("machines", "layout", *numbers, right=numbers, no_wrap=("layout",))
    for layout in possible:
        table.add_row(
            one_line(layout.machine.name),
            _name(layout),
            f"{layout.bytes_each / 1e9:.1f} of {layout.machine.memory / 1e9:.0f}",
            f"{layout.decode:,.3g}",
            f"{layout.batched_decode:,.4g}"
            + (f" with {layout.sequences}" if layout.sequences < BATCH else ""),
            f"{layout.prefill:,.4g}",
            "any" if layout.cached_tokens is None else f"{layout.cached_tokens:,}",
        )
    common.show(table)
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
