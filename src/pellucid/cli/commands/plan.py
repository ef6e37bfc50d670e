"""pellucid plan MODEL: the operations of a model; --measured adds their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import Loading, load
from pellucid.cli.planning import MachinesFile, show_layouts
from pellucid.errors import InvalidRequest

if TYPE_CHECKING:
    from pellucid.load_options import LoadOptions
    from pellucid.measure.roofs import Profile
    from pellucid.plan.plan import Operation, Plan

ROOMY = 120
"""Minimum columns of a terminal for a table with times and shapes."""


@command("plan")
def plan_command(
    model: common.Model,
    whole: bool = common.flag("--all", "Show every block, even if it equals an earlier block."),
    measured: bool = common.flag("--measured", "Load the model and time each operation of a step."),
    prompt: int | None = common.count("With --measured: time a prefill step of N tokens. Default: a decode step."),
    machines: MachinesFile = None,
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Show the operations of a model. No weights are loaded without --measured.

    MODEL may also be a shape on paper: a name such as gpt3-175b, llama-3-70b or qwen3-30b-a3b, or a config.json
    without weights (the file, or a folder with it). For a shape, the command also
    shows the number of parameters, the size in several formats, and the speed that this machine's memory and integer
    units allow. For an encoder-decoder, the operations of the encoder come first.

    An operation has a stage, a kernel, shapes (T tokens, R tokens with logits, B sequences), the bytes of weights that
    it reads per step, and its multiply-adds per token. A dot marks a barrier, where threads wait for each other. Some
    models also have operations that run once, when the model is loaded.
    --measured adds the time of each operation, the bytes or multiply-adds per second that it reaches, and their share
    of this machine's maximum.

    --machines shows the expected speed of one machine, of replicas and of stages on the machines of a file, and
    recommends a layout.
    """
    from pellucid.measure.paper import on_paper

    profile = None
    if machines is not None:
        if whole or prompt is not None:
            raise InvalidRequest("--machines shows layouts, not operations: remove --all and --prompt, or --machines")
        show_layouts(model, machines, measured, loading, json)
        return
    if on_paper(model):
        options = {
            "measured": measured or None, "prompt": prompt, "context": loading.context, "pin": loading.pin,
        }  # fmt: skip
        for name, value in options.items():
            if value is not None:
                raise InvalidRequest(f"--{name}: {model} is a shape on paper, without weights: remove the option")
        _show_paper(model, whole, loading, json)
        return
    if measured:
        plan, profile = _measure(model, prompt, loading)
    else:
        plan = _plan(model, loading, prompt)
    if json and profile:
        common.print_json(_document(profile))
    elif json:
        once = [{**_row(op), "once": True} for op in plan.setup.plan.operations] if plan.setup else []
        encoder = plan.encoder.operations if plan.encoder else ()
        common.print_json([*once, *(_row(op) for op in (*encoder, *plan.operations))])
    else:
        if plan.setup and not profile:
            print(f"once, when the model is loaded, with T = {plan.setup.rows}:\n")
            _show(plan.setup.plan, shortened(plan.setup.plan.operations, whole), None)
            print("\neach step:\n")
        if plan.encoder:
            encoded = _of_encoder(plan.encoder)
            _show(encoded, shortened(encoded.operations, whole), None)
        _show(plan, shortened(plan.operations, whole), profile)


def _of_encoder(plan: Plan) -> Plan:
    """The plan of an encoder, with the names of its blocks without the prefix."""
    from msgspec.structs import replace

    from pellucid.model.shapes import ENCODER

    operations = tuple(replace(op, stage=op.stage.removeprefix(ENCODER)) for op in plan.operations)
    return replace(plan, operations=operations)


def _show_paper(name: str, whole: bool, loading: LoadOptions, json: bool) -> None:
    from rich.filesize import decimal

    from pellucid.capacity.machines import this_machine
    from pellucid.measure.paper import paper_model

    paper = paper_model(name, loading.activation_bits, loading.kv_cache)
    rates = this_machine(loading.threads).rates
    facts = {
        "name": paper.name,
        "source": paper.source,
        "parameters": paper.parameters,
        "active_parameters": paper.active,
        "file_bytes": dict(paper.file_bytes),
        "key_value_bytes_per_token": paper.token_bytes,
        "key_value_bytes_for_context": paper.context_bytes,
        "state_bytes": paper.state_bytes,
        "multiply_adds_per_token": paper.multiply_adds,
        "weight_bytes_per_token": paper.read_bytes,
        "key_value_layers": paper.cache_description,
        "decode_tokens_per_second": paper.decode(rates),
        "decode_tokens_per_second_after_context": paper.decode(rates, paper.spec.context),
        "prefill_tokens_per_second": paper.prefill(rates),
    }
    if json:
        common.print_json({**facts, "operations": [_row(op) for op in paper.plan.operations]})
        return
    _show(paper.plan, shortened(paper.plan.operations, whole), None)
    active = f", {paper.active / 1e9:.2f} billion active per token" if paper.active < paper.parameters else ""
    context = paper.spec.context
    state = f"; the state of a sequence: {decimal(paper.state_bytes)}" if paper.state_bytes else ""
    rate = f"{paper.prefill(rates):,.3g}"
    speed = f"{rate} tokens of texts per second"
    if paper.spec.generates:
        speed = (
            f"decode at {paper.decode(rates):.3g} tokens per second ({paper.decode(rates, context):.3g} at the end "
            f"of the context) and prefill at {rate}"
        )
    sizes = ", ".join(f"{form} {decimal(size)}" for form, size in paper.file_bytes.items())
    print(
        f"\n{paper.name} ({paper.source}): {paper.parameters / 1e9:.2f} billion parameters{active}\n"
        f"sizes: {sizes}\n"
        f"keys and values: {decimal(paper.token_bytes)} for each token ({paper.cache_description}), "
        f"{decimal(paper.context_bytes)} for a context of {context:,} tokens{state}\n"
        f"in {paper.form}, {rates.read / 1e9:.1f} GB/s and {rates.multiply / 1e9:,.0f} int8 GMAC/s of this machine "
        f"allow {speed}, if the model fits into the memory"
    )


def _plan(model: str, loading: LoadOptions, prompt: int | None) -> Plan:
    """The plan of a model. Raises InvalidRequest for options that need --measured."""
    only_measured = {
        "prompt": prompt, "threads": loading.threads, "context": loading.context, "pin": loading.pin,
    }  # fmt: skip
    for name, value in only_measured.items():
        if value is not None:
            raise InvalidRequest(f"--{name} has an effect with --measured only: add --measured")
    return common.plan(model, loading)


def _measure(model: str, prompt: int | None, loading: LoadOptions) -> tuple[Plan, Profile]:
    """The plan of a loaded model, and the profile of a step."""
    from pellucid.engine.inputs import Inputs
    from pellucid.measure.roofs import profile_step
    from pellucid.measure.suite import DEPTHS, SENTENCE
    from pellucid.runtime.batch import STEP_TOKENS
    from pellucid.util.checks import whole

    def check(inputs: Inputs) -> None:
        if inputs.spec.encoder:
            raise InvalidRequest(
                f"--measured: {inputs.spec.name} is an encoder-decoder, whose steps cannot be profiled: remove it"
            )
        if prompt is not None:
            longest = inputs.context if inputs.spec.in_one_step else min(inputs.context, STEP_TOKENS)
            whole("prompt", prompt, 1, longest, "a step holds no more")

    llm = load(model, loading, check)
    if prompt is None and llm.spec.generates:
        tokens, depth = 1, min(DEPTHS[0], llm.context - 1)
    else:
        tokens, depth = prompt or min(SENTENCE, llm.context), 0
    with common.progress(still=True) as bars:
        return llm.plan, profile_step(llm.runner, tokens, depth, progress=bars.measuring)


def _show(plan: Plan, lines: list[Line], profile: Profile | None) -> None:
    from rich.filesize import decimal

    times = (">µs", ">reached", ">share") if profile else ()
    shape = ("shape",) if not profile or common.columns() >= ROOMY else ()
    operation = "operation" if profile else "|operation"
    shown = common.table("|stage", operation, *shape, ">bytes", ">mul-adds", *times, "", gap=1)
    group = ""
    for line in lines:
        if line.alike:
            blanks = ("",) * (len(shape) + 2)
            shown.add_row(line.text, line.alike, *blanks, *_times(line.indices, profile), "", style="dim")
            continue
        (index,) = line.indices
        op = plan.operations[index]
        above, _, name = op.label.rpartition(".")
        if above.startswith("blocks.") and above != group:
            shown.add_row(above)
        group = above
        stage = f"  {name}" if above.startswith("blocks.") else op.label
        numbers = decimal(op.weight_bytes) if op.weight_bytes else "", _millions(op.multiply_adds)
        shapes = (op.shape,) if shape else ()
        barrier = {"none": "", "rows": "∘", "always": "·"}[op.barrier]
        shown.add_row(stage, str(op.kernel), *shapes, *numbers, *_times([index], profile), barrier)
    count = f"{len(plan.operations)} operations"
    waits = f"{sum(op.barrier != 'none' for op in plan.operations)} waits"
    shown.add_row(
        "total",
        *((count, waits) if shape else (f"{count}, {waits}",)),
        decimal(plan.weight_bytes),
        _millions(sum(op.multiply_adds for op in plan.operations)),
        *_times(range(len(plan.operations)), profile),
        style="bold",
    )
    common.show(shown)
    if profile:
        read, multiply = profile.rates.read / 1e9, profile.rates.multiply / 1e9
        print(f"\n{profile.what}\nthis machine reads {read:.1f} GB/s and computes {multiply:,.0f} int8 GMAC/s")


def _times(indices: list[int] | range, profile: Profile | None) -> tuple[str, ...]:
    """Total time, rate and share of some operations; empty without a profile."""
    if profile is None:
        return ()
    from pellucid.measure.roofs import combined

    timed = combined(profile.timed[i] for i in indices)
    share = timed.share(profile.rates)
    micros = timed.seconds * 1e6
    return (
        f"{micros:,.{0 if micros >= 1000 else 1}f}",
        timed.rate(profile.rates),
        "" if share is None else f"{share:.0%}",
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count else ""


def _row(op: Operation) -> dict[str, object]:
    return {
        "stage": op.stage,
        "operation": str(op.kernel),
        "shape": op.shape,
        "weight_bytes": op.weight_bytes,
        "multiply_adds": op.multiply_adds,
        "reads": op.reads,
        "writes": op.writes,
        "barrier": op.barrier,
    }


def _document(profile: Profile) -> dict[str, object]:
    """A measured plan as data: every operation with its time, and the machine's rates."""
    return {
        "what": profile.what,
        "seconds": profile.total.seconds,
        "read_bytes_per_second": round(profile.rates.read),
        "int8_multiply_adds_per_second": round(profile.rates.multiply),
        "operations": [
            {**_row(op), "seconds": timed.seconds, "share_of_roof": timed.share(profile.rates)}
            for op, timed in zip(profile.operations, profile.timed)
        ],
    }


@dataclass(frozen=True)
class Line:
    """A line of a table. ``indices`` are its operations: a single operation, or all operations of some blocks.

    For blocks, ``text`` names the blocks ("blocks.1 ... 29"), and ``alike`` names the block that they equal ("like
    blocks.0").
    """

    indices: list[int]
    text: str = ""
    alike: str = ""


def shortened(operations: Sequence[Operation], whole: bool = False) -> list[Line]:
    """Lines of a plan. Without ``whole``, consecutive blocks that equal the same earlier block share one line."""
    blocks: dict[int, list[int]] = {}
    for index, op in enumerate(operations):
        blocks.setdefault(_block(op), []).append(index)
    firsts: dict[tuple[object, ...], int] = {}
    like = {
        block: firsts.setdefault(
            tuple((op.stage.split(".", 2)[2], op.kernel, op.shape) for op in map(operations.__getitem__, indices)),
            block,
        )
        for block, indices in blocks.items()
        if block >= 0
    }
    lines: list[Line] = []
    run: list[int] = []  # consecutive blocks that equal the same earlier block
    for index, op in enumerate(operations):
        block = _block(op)
        if whole or block < 0 or like[block] == block:
            lines.append(Line([index]))
        elif index == blocks[block][0]:
            if run and run[-1] == block - 1 and like[run[0]] == like[block]:
                lines.pop()
                run.append(block)
            else:
                run = [block]
            last = f" ... {block}" if len(run) > 1 else ""
            indices = [i for each in run for i in blocks[each]]
            lines.append(Line(indices, f"blocks.{run[0]}{last}", f"like blocks.{like[block]}"))
    return lines


def _block(op: Operation) -> int:
    return int(op.stage.split(".")[1]) if op.stage.startswith("blocks.") else -1
