"""Compiles the kernels that a model needs for its first answer, before the weights are loaded.

The kernels are compiled in parallel if this saves time.
"""

from __future__ import annotations

from pellucid.kernels.core.library import CompileProgress, shared
from pellucid.model.weight_map import Model
from pellucid.plan.plan import Plan
from pellucid.plan.weights import packers
from pellucid.runtime.executor import LOOP_KERNELS
from pellucid.runtime.processors import free_bytes, processors
from pellucid.sample.candidates import SUMS, TOP
from pellucid.weights.checkpoint import Checkpoint


def compile_kernels(
    checkpoint: Checkpoint, model: Model, plan: Plan, *, samples: bool, progress: CompileProgress | None
) -> None:
    """Compile the kernels that are not cached. ``samples`` is True if this process samples tokens from the logits."""
    sampling = (TOP, SUMS) if samples and model.spec.generates else ()
    kernels = (*plan.kernels(), *LOOP_KERNELS, *packers(checkpoint, model, plan), *sampling)
    if not shared().is_cached(kernels):
        # Imported here because it imports subprocess, which most starts do not need.
        from pellucid.kernels.core.parallel import compile_in_parallel

        compile_in_parallel(kernels, processors().usable, free_bytes(), progress)
