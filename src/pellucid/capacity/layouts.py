"""How a model could run on machines: on one, as replicas, or over several machines each; and which of these to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pellucid.capacity.machines import Link, Machine, Machines
from pellucid.capacity.replica import ReplicaRoom
from pellucid.capacity.step_costs import PROMPTS, PlanWork, StepCosts
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import Plan
from pellucid.plan.stages import cut
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import page_counts
from pellucid.runtime.cache_layout import groups_of
from pellucid.runtime.prefix_cache import kept_bytes

USABLE = 0.9  # of a machine's memory
MOST_STAGES = 64
TOGETHER = 16
"""Texts that are made together, where the speed for many is stated."""
BESIDE = 300e6  # bytes that a process takes beside weights and cache


@dataclass(frozen=True)
class SizedModel:
    """A model as far as its size and its work matter."""

    name: str
    spec: ModelSpec
    plan: Plan
    limits: StepLimits
    weight_bytes: int

    @cached_property
    def work(self) -> PlanWork:
        """What its steps must read and multiply."""
        return PlanWork(self.plan, self.spec.embedding.width)

    @property
    def context_bytes(self) -> int:
        """Bytes of keys and values of a whole context, and of the states of a sequence."""
        counts = page_counts(self.plan.layers, self.limits.context, self.limits.tokens, 1, memory=0)
        return sum(g.page_bytes * count for g, count in zip(groups_of(self.plan.layers), counts))

    def room(self, memory: int) -> ReplicaRoom:
        """What a replica with so many bytes of memory has for requests."""
        limits = self.limits
        counts = page_counts(self.plan.layers, limits.context, limits.tokens, limits.sequences, memory=memory)
        return ReplicaRoom(self.plan.layers, counts, kept_bytes(memory), limits)


@dataclass(frozen=True)
class Layout:
    """A model on ``replicas`` times ``stages`` machines of a kind, and what it would reach.

    ``one`` are tokens per second of a text alone, ``many`` those of all replicas with ``TOGETHER`` texts on each,
    ``prompt`` tokens per second of a long prompt, ``tokens`` how many tokens of context all replicas have room for.
    """

    machine: Machine
    replicas: int
    stages: int
    bytes_each: int
    one: float
    many: float
    prompt: float
    tokens: int

    @property
    def machines(self) -> int:
        """How many machines it takes."""
        return self.replicas * self.stages


def needed(model: SizedModel, stages: int) -> int:
    """Bytes that each of the machines needs, with one whole context."""
    return int((model.weight_bytes + model.context_bytes) / stages + BESIDE)


def fewest_stages(model: SizedModel, machine: Machine) -> int:
    """Over how few machines of a kind a model fits.

    Raises:
        InvalidRequest: over none that it can be cut into.
    """
    for stages in range(1, MOST_STAGES + 1):
        if needed(model, stages) <= USABLE * machine.memory and _can_be_cut(model.plan, stages):
            return stages
    raise InvalidRequest(
        f"{model.name} needs {needed(model, 1) / 1e9:.1f} GB, and cannot be divided so that a part fits into the "
        f"{machine.memory / 1e9:.1f} GB of {machine.name}: use a smaller format or context, or larger machines"
    )


def _can_be_cut(plan: Plan, stages: int) -> bool:
    try:
        return stages == 1 or bool(cut(plan, stages))
    except PellucidError:
        return False


def layouts(model: SizedModel, machines: Machines, costs: Sequence[StepCosts]) -> list[Layout]:
    """The layouts on each kind of machine, whose step costs these are: one machine, all as replicas, stages."""
    found = list[Layout]()
    for machine, of_one in zip(machines.kinds, costs):
        least = _stages_or_none(model, machine)
        if least is None:
            continue
        shapes = [(1, least), (machine.count // least, least)]
        if machine.count > least and _can_be_cut(model.plan, machine.count):
            shapes.append((1, machine.count))
        for replicas, stages in dict.fromkeys(shapes):
            if 0 < replicas * stages <= machine.count:
                found.append(_layout(model, machine, machines.link, of_one, replicas, stages))
    return found


def _stages_or_none(model: SizedModel, machine: Machine) -> int | None:
    try:
        return fewest_stages(model, machine)
    except InvalidRequest:
        return None


def _layout(
    model: SizedModel, machine: Machine, link: Link, of_one: StepCosts, replicas: int, stages: int
) -> Layout:
    costs = of_one.over(stages, link, model.work)
    part = min(PROMPTS[-1], model.limits.tokens)
    free = max(0.0, USABLE * machine.memory * stages - model.weight_bytes - BESIDE * stages)
    room = model.room(machine.memory * stages)
    pages = room.pages[0] if room.pages else 0
    full = [g for g in groups_of(model.plan.layers) if not g.recurrent]
    if full:
        pages = min(pages, int(free / max(sum(g.page_bytes for g in full), 1)))
    return Layout(
        machine,
        replicas,
        stages,
        needed(model, stages),
        1 / costs.step(1, PAGE, 0, 0),
        replicas * TOGETHER / costs.step(TOGETHER, TOGETHER * PAGE, 0, 0),
        part / costs.step(0, 0, part, 0),
        replicas * pages * PAGE,
    )


def recommended(found: Sequence[Layout]) -> tuple[Layout, str] | None:
    """The layout to take, and why; None if the model fits nowhere."""
    if not found:
        return None
    best = max(found, key=lambda one: (one.many, -one.machines))
    if best.stages > 1:
        why = f"the model does not fit into one machine: over {best.stages} it does"
    elif best.replicas > 1:
        why = "the model fits into one machine, so each answers by itself; stages would only add hops"
    else:
        why = "one machine has room for the model"
    return best, why
