"""A request that moves to another replica has the receipt of a run without a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.replicas import finished, replicas, run

from pellucid.llm import LLM

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "


@pytest.mark.parametrize("n", [1, 3])
def test_a_receipt_outlives_its_replica(llama_file: Path, alone: LLM, n: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "seed": 5, "receipt": True}
    wanted = [one.receipt for one in alone.samples(PROMPT, n, **options)]

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            group = model.request(PROMPT, n, **options)
            await finished(group, lambda count: made.kill() if count == 20 else None)
            assert made.fleet.moved >= 1
            assert [one.receipt for one in group.results()] == wanted

    run(work())
    assert all(one and alone.verify_receipt(one) for one in wanted)
