"""LongRoPE and "dynamic" scaling: each text has the frequencies of its own length, whatever the loaded context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import lose_pages
from support.stages import staged, stages

import pellucid
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import call, gradients, logit_difference, replace, scale

ORIGINAL, CONTEXT = 64, 256
FACTORS = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 1.9, 2.1],
    "long_factor": [1.0, 1.3, 1.9, 3.0, 4.5, 7.0, 9.0, 12.0],
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "original_max_position_embeddings": ORIGINAL,
                **FACTORS,
            },
            "original_max_position_embeddings": ORIGINAL,
            "max_position_embeddings": CONTEXT,
            "head_dim": 16,
        },
    ),
    "dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
            "max_position_embeddings": ORIGINAL,
        },
    ),
}
PROMPT = [3 + number % 50 for number in range(40)]
HOW: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module", params=MODELS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, metadata = MODELS[request.param]
    folder = tmp_path_factory.mktemp("scaled") / request.param
    return random_model(family, folder, kind="safetensors", metadata=metadata, context=CONTEXT, head_dim=16)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with pellucid.load(path, threads=2, context=CONTEXT) as llm:
        yield llm


def chosen(made: Any) -> tuple[list[int], bytes]:
    """The tokens and the bits of their log-probabilities."""
    return made.ids, made.logprobs.chosen.tobytes()


def after(llm: LLM, ids: Sequence[int]) -> tuple[int, bytes]:
    """The next token of a text that is computed at once, without the prefix cache."""
    llm.runner.cache.clear_prefixes()
    made = llm.generate(list(ids), **{**HOW, "max_new_tokens": 1})
    return made.ids[0], made.logprobs.chosen.tobytes()


def test_short_texts_have_the_bits_of_the_original_context(path: Path, llm: LLM) -> None:
    how = {**HOW, "max_new_tokens": ORIGINAL - len(PROMPT)}
    with pellucid.load(path, threads=2, context=ORIGINAL) as original:
        assert original.runner.limits.unscaled == 0
        assert llm.runner.limits.unscaled == ORIGINAL
        assert chosen(llm.generate(PROMPT, **how)) == chosen(original.generate(PROMPT, **how))
        whole = PROMPT + list(range(3, 3 + ORIGINAL - len(PROMPT)))
        for ids in (whole[:1], whole[:33], whole[:-1]):
            traces = []
            for one in (llm, original):
                with one.trace("blocks.*.attention.q", "blocks.*.residual") as trace:
                    one.generate(ids, max_new_tokens=1, temperature=0)
                traces.append(trace)
            for name in traces[0]:
                assert traces[0][name].tobytes() == traces[1][name].tobytes(), name
        assert llm.score(whole).total == original.score(whole).total


def test_a_text_that_grows_is_computed_again(llm: LLM) -> None:
    """The next token after any length is the next token of the same text as a new prompt."""
    made = llm.generate(PROMPT, **HOW)
    for number in (0, 5, 23, 24, 25, 26, 40, 59):
        one = after(llm, PROMPT + made.ids[:number])
        assert one == (made.ids[number], made.logprobs.chosen[number : number + 1].tobytes()), number


def test_the_prefix_cache_tells_short_from_long_texts(llm: LLM) -> None:
    """Pages of a short text are not the prefix of a long text, and the other way round."""
    long = PROMPT * 3
    llm.runner.cache.clear_prefixes()
    short_first = [chosen(llm.generate(ids, **HOW)) for ids in (PROMPT, long, PROMPT, long)]
    llm.runner.cache.clear_prefixes()
    long_first = [chosen(llm.generate(ids, **HOW)) for ids in (long, PROMPT, long, PROMPT)]
    assert short_first == long_first[1:] + long_first[:1]
    assert llm.generate(long, **HOW).usage.cached_tokens > 0


def test_whatever_runs_beside_it(llm: LLM) -> None:
    alone = [chosen(llm.generate(PROMPT[:size], **HOW)) for size in (10, 30, 40)]
    requests = [llm.request(PROMPT[:size], **HOW) for size in (10, 30, 40)]
    for request in requests:
        request.start()
    for request in requests:
        request.wait()
    assert [chosen(request.result()) for request in requests] == alone
    for after_tokens in (10, 30):  # before and after the limit
        request = llm.request(PROMPT, **HOW)
        for number, _ in enumerate(request):
            if number == after_tokens:
                lose_pages(llm)
        assert chosen(request.result()) == alone[2]
    for lookup in (False, True):
        assert chosen(llm.generate(PROMPT, **HOW, prompt_lookup=lookup)) == alone[2]
    assert llm.samples(PROMPT, 3, **HOW)[2].ids == alone[2][0]


def test_beams_that_grow(llm: LLM) -> None:
    beams = llm.beam_search(PROMPT, num_beams=3, max_new_tokens=40, ignore_eos=True)
    best, total = beams.texts[0], 0.0
    for number, token in enumerate(best.ids):
        llm.runner.cache.clear_prefixes()
        made = llm.generate(PROMPT + best.ids[:number], **{**HOW, "max_new_tokens": 1, "logprobs": 20})
        total += dict(zip(made.logprobs.top_ids[0].tolist(), made.logprobs.top[0].tolist()))[token]
    assert best.score * len(best.ids) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("where", ["blocks.1.attention.q", "blocks.0.attention.k[tokens=:50]", "blocks.1.residual"])
def test_functions_change_the_values_that_count(llm: LLM, where: str) -> None:
    """When the text is computed again, functions are called again."""
    wanted = llm.generate(PROMPT, edits=[scale(where, 0.5)], **HOW)
    made = llm.generate(PROMPT, edits=[call(where, lambda values: values * 0.5)], **HOW)
    assert chosen(made) == chosen(wanted)


@pytest.mark.parametrize("size", [40, 100])
def test_edited_copies_are_edited_requests(llm: LLM, size: int) -> None:
    ids = (PROMPT * 3)[:size]
    edits = [[scale("blocks.0.residual[tokens=5]", 0.0)], [scale(f"blocks.1.attention.q[tokens={size - 1}]", 2.0)]]
    found = dict(llm.edited_outputs(ids, edits))
    for number, edit in [(-1, None), *enumerate(edits)]:
        with llm.trace("project.logits") as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0, edits=edit)
        np.testing.assert_array_equal(found[number], trace["project.logits"][0, -1])


def test_gradients_of_short_and_long_texts(path: Path) -> None:
    """The gradients of both texts at once equal differences of the same run."""
    texts, names, rng = [PROMPT, PROMPT * 3], ["embed", "blocks.1.attention.q"], np.random.default_rng(1)
    with pellucid.load(path, threads=1, context=CONTEXT, precise=True) as llm:
        target = logit_difference(llm, 65, 66)
        for ids, own in zip(texts, gradients(llm, texts, target, names)):
            with llm.trace(*names, "project.logits[tokens=-1]") as trace:
                llm.generate(ids, max_new_tokens=1, temperature=0)
            assert own.value == target(trace["project.logits"][0, 0])
            for name in names:
                values = trace[name][0]
                assert own.values[name].tobytes() == values.tobytes(), name
                direction, size, ends = rng.standard_normal(values.shape), 0.02 * np.abs(values).mean(), []
                for sign in (1, -1):
                    edit = replace(name, (values + sign * size * direction).astype(np.float32))
                    with llm.trace("project.logits[tokens=-1]") as moved:
                        llm.generate(ids, edits=[edit], max_new_tokens=1, temperature=0)
                    ends.append(target(moved["project.logits"][0, 0]))
                expected = (own[name] * direction).sum()
                most = 0.02 * np.linalg.norm(own[name].astype(float))
                assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(expected, abs=most), name


@pytest.mark.parametrize("path", ["longrope"], indirect=True)  # its file states the context
def test_stages_scale_as_one_machine(path: Path, llm: LLM) -> None:
    wanted = [chosen(llm.generate(ids, **HOW)) for ids in (PROMPT, PROMPT * 3)]
    with stages(path, 2) as servers, staged(path, [one.address for one in servers]) as divided:
        assert [chosen(divided.generate(ids, **HOW)) for ids in (PROMPT, PROMPT * 3)] == wanted
