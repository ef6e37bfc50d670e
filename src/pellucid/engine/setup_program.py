"""Runs the setup of a plan: the operations that compute constants of the weights, once when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pellucid.plan.bind import Arrays, allocate
from pellucid.plan.plan import Plan, Setup
from pellucid.runtime.batch import StepArrays
from pellucid.runtime.executor import Executor, Program


def run_setup(
    setup: Setup, arrays: Arrays, executor: Executor, scratch: int, bind: Callable[[Plan, Arrays], Program]
) -> None:
    """Run ``setup``. Its results are written to the buffers of ``arrays``; its other buffers are temporary.

    ``scratch`` is the number of bytes of scratch memory of a thread.
    """
    temporary = {name: buffer for name, buffer in setup.plan.buffers.items() if name not in arrays.by_name}
    own = allocate(temporary, {"tokens": setup.rows})
    step = StepArrays(setup.rows, 0, 1, 1, scratch, executor.threads)
    step.positions[:] = np.arange(setup.rows)
    step.record[0] = setup.rows
    executor.run(bind(setup.plan, Arrays({**arrays.by_name, **own.by_name})), step.record)
