"""A model on several stages is bit-identical to the model alone, for every kind of state; also after a lost stage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.replicas import SECRET
from support.stages import PROMPT, staged, stages

import pellucid
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import StageLost, stage_of
from pellucid.cluster.staged_runner import StagedRunner
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.serve.look.queries import QUERIES
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.testing import random_model
from pellucid.trace import ablate

FAMILIES = {"llama": 3, "qwen3next": 3, "gemma3": 2, "gemma4": 2, "granitemoehybrid": 3, "deepseek2": 2}
"""Families and their number of stages: full attention, recurrent layers, windows, per-layer embeddings, state spaces,
latent attention.
"""


def queried(kind: str, fields: dict[str, Any], llm: LLM) -> dict[str, Any]:
    return QUERIES[kind].run(QUERIES[kind].body.decode(fields), llm)


@contextmanager
def divided(path: Path, count: int) -> Iterator[LLM]:
    """Load a model on ``count`` stages. All stages but the lead run in their own threads."""
    with stages(path, count) as servers, staged(path, [one.address for one in servers]) as llm:
        yield llm


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path = tmp_path_factory.mktemp("stages") / f"{request.param}.gguf"
    random_model(request.param, path, context=512, **({"layers": 5} if request.param == "llama" else {}))
    return path, FAMILIES[request.param]


def test_bits_are_those_of_one_machine(model: tuple[Path, int]) -> None:
    path, count = model
    asked: list[tuple[str, dict[str, Any]]] = [
        (PROMPT, {"max_new_tokens": 20, "seed": 1, "logprobs": 3}),
        (PROMPT * 8, {"max_new_tokens": 10, "temperature": 0, "prompt_logprobs": 1}),
        (PROMPT * 8 + "more", {"max_new_tokens": 30, "seed": 2, "regex": "(ab|cd){9,12}"}),
        (PROMPT * 4, {"max_new_tokens": 40, "temperature": 0.1, "seed": 3}),
    ]
    with pellucid.load(path, threads=2) as whole, divided(path, count) as llm:
        for prompt, options in asked:
            one, other = llm.generate(prompt, **options), whole.generate(prompt, **options)
            assert one.ids == other.ids
            for name in ("logprobs", "prompt_logprobs"):
                a, b = getattr(one, name), getattr(other, name)
                assert (a is None) == (b is None)
                assert a is None or all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))
        together = [prompt for prompt, _ in asked]
        one_by_one = [whole.generate(prompt, max_new_tokens=25, seed=5).ids for prompt in together]
        assert [made.ids for made in llm.generate(together, max_new_tokens=25, seed=5)] == one_by_one
        samples = [made.ids for made in llm.samples(PROMPT, 3, max_new_tokens=12, seed=6)]
        assert samples == [made.ids for made in whole.samples(PROMPT, 3, max_new_tokens=12, seed=6)]
        beams = llm.beam_search(PROMPT, num_beams=3, max_new_tokens=10)
        assert beams.tree == whole.beam_search(PROMPT, num_beams=3, max_new_tokens=10).tree
        found = llm.generate(PROMPT * 8, max_new_tokens=5, temperature=0)  # its prefix is cached
        assert found.usage.cached_tokens > 0 or llm.runner.cache.has_states
        assert found.ids == whole.generate(PROMPT * 8, max_new_tokens=5, temperature=0).ids
        assert llm.score(PROMPT * 3).total == whole.score(PROMPT * 3).total


def test_pages_run_out_alike(tmp_path: Path) -> None:
    """Many texts in a small cache: sequences are preempted and run prefill again in every stage."""
    path = tmp_path / "llama.gguf"
    random_model("llama", path, context=256)
    prompts = [f"{number} {PROMPT}" * 4 for number in range(12)]
    with pellucid.load(path, threads=2, context=256) as whole, divided(path, 2) as llm:
        wanted = [whole.generate(prompt, max_new_tokens=60, seed=1, ignore_eos=True).ids for prompt in prompts]
        for _ in range(2):
            made = llm.generate(prompts, max_new_tokens=60, seed=1, ignore_eos=True)
            assert [one.ids for one in made] == wanted


STAGE = """
import sys
import pellucid
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import StageServer, runner_of
path, secret = sys.argv[1:]
llm = pellucid.load(path, threads=1, make=runner_of(0, 2))
server = StageServer(llm.runner, ClusterSecret(secret))
print(server.address, flush=True)
server.serve()
"""


def stage_process(path: Path) -> tuple[subprocess.Popen[str], str]:
    made = subprocess.Popen([sys.executable, "-c", STAGE, str(path), SECRET], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    return made, made.stdout.readline().strip()


def test_a_stage_that_ends_is_replaced(llama_file: Path, alone: LLM) -> None:
    wanted = alone.generate(PROMPT, max_new_tokens=300, seed=1, ignore_eos=True)
    process, address = stage_process(llama_file)
    make = partial(StagedRunner, stages=[address], secret=ClusterSecret(SECRET))
    with pellucid.load(llama_file, threads=1, make=make) as llm:
        assert isinstance(llm.runner, StagedRunner)
        ids: list[int] = []

        def read() -> None:
            for output in llm.start(PROMPT, max_new_tokens=300, seed=1, ignore_eos=True):
                ids.append(output.id)
                if len(ids) == 40:
                    process.kill()
                    process.communicate()

        with pytest.raises(StageLost):
            read()
        assert ids == wanted.ids[: len(ids)]
        with pytest.raises(StageLost):
            llm.generate(PROMPT, max_new_tokens=3)
        with pytest.raises(StageLost, match="does not answer"):
            llm.runner.begin_all([address], seconds=0.5)
        process, address = stage_process(llama_file)
        llm.runner.begin_all([address])
        try:
            assert llm.generate(PROMPT, max_new_tokens=300, seed=1, ignore_eos=True).ids == wanted.ids
        finally:
            process.kill()
            process.communicate()


def test_what_cannot_be_cut(llama_file: Path, alone: LLM) -> None:
    for number, count, said in ((0, 3, "1 to 2 stages"), (2, 2, "there are 2"), (0, 0, "there are 0")):
        with pytest.raises(InvalidRequest, match=said):
            stage_of(alone.plan, number, count)


def test_values_cannot_be_watched(llama_file: Path) -> None:
    """Requests with watches or edits are refused before they run. The page opens with a notice."""
    with divided(llama_file, 2) as llm:
        made = queried("models", {"name": "m"}, llm)
        assert "watched" in made["notice"]
        assert (made["generates"], len(made["blocks"]), made["points"]) == (True, 2, {})
        for refused in (
            lambda: llm.generate(PROMPT, edits=[ablate("embed")]),
            lambda: llm.watch(llm.request(PROMPT), ["embed"]),
            lambda: TraceReading.of(TRACE.decode({"prompt": PROMPT, "points": ["embed"]}), llm),
            lambda: queried("lens", {"prompt": PROMPT}, llm),
            lambda: queried("attribution", {"prompt": PROMPT, "token": 65}, llm),
            lambda: queried("graph", {"prompt": PROMPT}, llm),
        ):
            with pytest.raises(InvalidRequest, match="cannot be watched"):
                refused()
        with pytest.raises(InvalidRequest, match="measure it on one"):
            queried("profile", {}, llm)
        assert queried("neighbours", {"words": ["a"], "n": 2}, llm)["neighbours"]


def test_the_lead_knows_what_each_stage_takes(three_blocks: Path) -> None:
    with divided(three_blocks, 3) as llm:
        llm.generate(PROMPT, max_new_tokens=20, seed=1, prompt_lookup=False)
        state = llm.state()
        assert len(state.stage_seconds) == 3
        assert all(seconds > 0 for seconds in state.stage_seconds)
        assert sum(state.stage_seconds) < state.step_seconds
