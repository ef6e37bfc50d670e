"""Layouts of a model on machines (one machine, replicas, stages over several machines), and the recommended layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pellucid.capacity.machines import Link, Machine, Machines
from pellucid.capacity.simulated_replica import ReplicaCapacity
from pellucid.capacity.step_costs import PROMPTS, PlanWork, StepCosts
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.measure.cost import kv_bytes
from pellucid.model.spec import ModelSpec
from pellucid.plan.pipeline_stages import cut
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache_layout import groups_of, page_counts
from pellucid.runtime.prefix_cache import default_bytes

USABLE = 0.9  # fraction of a machine's memory that a model may use
MAX_STAGES = 64
BATCH = 16
"""Sequences in the predicted throughput of many sequences; fewer if the machine has too little memory for all."""
DEPTH = 1024  # tokens of context whose keys and values a decode step reads; at most half of the model's context
PROCESS_BYTES = 300e6  # bytes of a process beside weights and cache


@dataclass(frozen=True)
class ModelSize:
    name: str
    spec: ModelSpec
    plan: Plan
    limits: StepLimits
    weight_bytes: int

    @classmethod
    def of(cls, llm: LLM) -> ModelSize:
        return cls(llm.spec.name, llm.spec, llm.plan, llm.runner.limits, llm.weight_bytes)

    @cached_property
    def work(self) -> PlanWork:
        return PlanWork(self.plan, self.spec.embedding.width)

    @property
    def context_bytes(self) -> int:
        """Bytes of the keys and values of a full context, and of the states of a sequence."""
        counts = page_counts(self.plan.layers, self.limits.context, self.limits.tokens, 1, memory=0)
        return sum(g.page_bytes * count for g, count in zip(groups_of(self.plan.layers), counts))

    def sequence_bytes(self, tokens: int) -> int:
        """Bytes of the keys, values and states of a sequence of ``tokens`` tokens."""
        layers = self.plan.layers
        return kv_bytes(layers, tokens) + sum(layer.page_bytes for layer in layers if layer.recurrent)

    @cached_property
    def _largest_block(self) -> float:
        sizes = Counter[str]()
        for op in self.plan.operations:
            kind, number, *_ = f"{op.stage}..".split(".")
            sizes[number if kind == "blocks" else ""] += op.weight_bytes
        largest = max(size for block, size in sizes.items() if block or len(sizes) == 1)
        return largest / max(sizes.total(), 1)

    def min_stage_bytes(self, stages: int) -> float:
        """Return a lower bound on the bytes of the largest of ``stages`` stages.

        The bound is the larger of an equal share of the model and the share of its largest block.
        """
        part = max(1 / stages, self._largest_block)
        return (self.weight_bytes + self.context_bytes) * part

    def replica_capacity(self, memory: int) -> ReplicaCapacity:
        """Return the pages and limits of a replica whose machines have ``memory`` bytes each.

        Every stage allocates a page for all layers (decision 34), so more machines do not mean more pages.
        """
        limits = self.limits
        counts = page_counts(self.plan.layers, limits.context, limits.tokens, limits.sequences, memory=memory)
        kept = default_bytes(self.weight_bytes, memory)
        return ReplicaCapacity(self.plan.layers, counts, kept, limits)


@dataclass(frozen=True)
class Layout:
    """A model on ``replicas`` times ``stages`` machines of a kind, with the predicted throughput.

    Attributes:
        bytes_each: bytes on the machine with the largest stage.
        decode: tokens per second of a single sequence, after ``depth`` tokens.
        batched_decode: tokens per second of all replicas, with ``sequences`` sequences on each, after ``depth`` tokens.
        prefill: tokens per second of a long prompt.
        cached_tokens: context tokens that fit into all replicas. None: no limit, because no layer keeps every token.
    """

    machine: Machine
    replicas: int
    stages: int
    bytes_each: int
    decode: float
    batched_decode: float
    prefill: float
    cached_tokens: int | None
    depth: int
    sequences: int

    @property
    def machines(self) -> int:
        return self.replicas * self.stages


def stage_bytes(model: ModelSize, stages: int) -> int | None:
    """Return the bytes of the largest stage with one full context; None if the model cannot be cut into ``stages``."""
    share = 1.0
    if stages > 1:
        try:
            parts = cut(model.plan, stages)
        except PellucidError:
            return None
        bytes_of = [part.plan.weight_bytes for part in parts]
        share = max(bytes_of) / sum(bytes_of)
    return int((model.weight_bytes + model.context_bytes) * share + PROCESS_BYTES)


def fewest_stages(model: ModelSize, machine: Machine) -> int:
    """Return the smallest number of machines of a kind that can hold the model together. Raises InvalidRequest if no
    cut of the model fits on machines of this kind.
    """
    usable = USABLE * machine.memory
    for stages in range(1, MAX_STAGES + 1):
        if model.min_stage_bytes(stages) > usable - PROCESS_BYTES:  # skips cuts that cannot fit
            continue
        bytes_each = stage_bytes(model, stages)
        if bytes_each is not None and bytes_each <= usable:
            return stages
    raise InvalidRequest(
        f"{model.name} needs {(stage_bytes(model, 1) or 0) / 1e9:.1f} GB, and cannot be divided into parts of the "
        f"{machine.memory / 1e9:.1f} GB of {machine.name}: use a smaller format or context, or larger machines"
    )


def layouts(model: ModelSize, machines: Machines, costs: Sequence[StepCosts]) -> list[Layout]:
    """Return the layouts on each kind of machine: on the fewest machines, on all machines as replicas or as stages.

    ``costs`` are the step costs of each kind of machine.
    """
    possible = list[Layout]()
    for machine, of_one in zip(machines.kinds, costs):
        try:
            fewest = fewest_stages(model, machine)
        except InvalidRequest:
            continue
        shapes = [(1, fewest), (machine.count // fewest, fewest)]
        if machine.count > fewest and stage_bytes(model, machine.count) is not None:
            shapes.append((1, machine.count))
        for replicas, stages in dict.fromkeys(shapes):
            if 0 < replicas * stages <= machine.count:
                possible.append(_layout(model, machine, machines.link, of_one, replicas, stages))
    return possible


def _layout(model: ModelSize, machine: Machine, link: Link, of_one: StepCosts, replicas: int, stages: int) -> Layout:
    costs = of_one.over(stages, link, model.work)
    part = min(PROMPTS[-1], model.limits.tokens)
    bytes_each = stage_bytes(model, stages) or 0
    groups, room = groups_of(model.plan.layers), model.replica_capacity(machine.memory)
    full = [(g, count) for g, count in zip(groups, room.pages) if not g.window and not g.recurrent]
    tokens = None
    if full:
        # Memory beyond one context holds more contexts. Each stage stores its own layers of a page.
        left = max(0.0, USABLE * machine.memory - bytes_each) * stages
        more = int(left / sum(group.page_bytes for group, _ in full))
        own = -(-model.limits.context // PAGE)
        tokens = replicas * PAGE * min(own + more, *(count for _, count in full))
    depth = max(min(DEPTH, model.limits.context // 2), 1)
    sequences = BATCH if tokens is None else min(BATCH, max(tokens // replicas // (depth + 1), 1))
    return Layout(
        machine,
        replicas,
        stages,
        bytes_each,
        1 / costs.step(1, depth, 0, 0),
        replicas * sequences / costs.step(sequences, sequences * depth, 0, 0),
        part / costs.step(0, 0, part, 0),
        tokens,
        depth,
        sequences,
    )


def recommended(possible: Sequence[Layout]) -> tuple[Layout, str] | None:
    """Return the layout to take, and the reason; None if the model fits nowhere."""
    if not possible:
        return None
    best = max(possible, key=lambda layout: (layout.batched_decode, -layout.machines))
    if best.stages > min(layout.stages for layout in possible if layout.machine is best.machine):
        why = f"{best.stages} machines have memory for a larger batch ({best.sequences} sequences)"
    elif best.stages > 1:
        why = f"the model needs the memory of {best.stages} machines"
    elif best.replicas > 1:
        why = "the model fits into one machine; stages would only add network hops"
    else:
        why = "the model fits into one machine"
    return best, why
