"""Lenses on random models of several families: sums equal the logits, and the last layer is the model's output."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lettered import lettered_llm

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.model.spec import Mixture
from pellucid.testing import random_model
from pellucid.trace import (
    ablate,
    add,
    attribute,
    difference,
    head_scores,
    heads_between,
    logit_lens,
    neighbours,
    position_of,
    relevance,
    rollout,
    scale,
    similarity,
    token_contributions,
    word_map,
)
from pellucid.trace.lenses.attribution import needed
from pellucid.trace.lenses.logit_lens import TOGETHER
from pellucid.trace.traced_model import ModelWeights, read

PROMPT = "the cat sat on the mat"
FAMILIES = (
    "llama",
    "gemma2",
    "gpt2",
    "olmo2",
    "falcon",
    "bloom",
    "qwen2moe",
    "gpt-oss",
    "llama4",
    "qwen3next",
    "granite",
    "gptneox",
)


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("lens") / f"{request.param}.gguf"
    random_model(request.param, path, context=256)
    found = pellucid.load(path, threads=2, precise=True, kv_cache="f32")
    yield found
    found.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("lens") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=256, form="Q4_0")
    found = pellucid.load(path, threads=2)
    yield found
    found.close()


def test_contributions_sum_to_the_logit(llm: LLM) -> None:
    with llm.trace("project.logits") as trace:
        llm.generate(PROMPT, max_new_tokens=1, temperature=0)
    logits = trace["project.logits"][0].astype(np.float64)
    for position, token, against in ((-1, None, None), (2, 100, None), (-1, 65, 66)):
        found = attribute(llm, PROMPT, token, against=against, position=position)
        row, spread = logits[position], np.ptp(logits[position])
        wanted = int(row.argmax()) if token is None else token
        cap = llm.spec.head.softcap if llm.spec.head else 0.0
        own = cap * np.arctanh(row / cap) if cap else row
        assert found.logit == pytest.approx(own[wanted] - (own[against] if against else 0.0), abs=1e-9)
        assert found.total == pytest.approx(found.logit, abs=1e-9)
        unexplained = sum(abs(one.value) for one in found.ranked("rounding"))
        assert unexplained <= 1e-4 * spread, found.ranked("rounding")[:3]
        assert len(repr(found).splitlines()) == 1


@pytest.mark.parametrize("name", ["gemma4", "gemma4_moe"])
def test_contributions_to_a_scaled_stream(name: str, tmp_path: Path) -> None:
    """Each block multiplies the stream by a number, which scales the contributions of all parts before."""
    ids = [3, 17, 90, 41, 8, 55]
    with lettered_llm(name, tmp_path) as llm:
        scalars = [f"blocks.{layer}.scalar" for layer in range(len(llm.spec.blocks))]
        assert any(abs(llm.float_weights.vector(f"{one}.weight", 1, 1.0)[0] - 1) > 0.01 for one in scalars)
        found = attribute(llm, ids, 65, against=66)
        spread = sum(abs(one.value) for one in found.contributions)
        assert found.total == pytest.approx(found.logit, abs=1e-6 * spread)
        assert sum(abs(one.value) for one in found.ranked("rounding")) < 1e-4 * spread
        assert (name == "gemma4") == bool(found.ranked("per_layer"))
        assert "per_layer" not in {one.kind for one in found.contributions if one.layer is None}
        edited = read(llm, ids, needed(llm), [scale("blocks.0.scalar", 1.5)])
        (edit,) = attribute(llm, edited, 65).ranked("edit")
        assert edit.name == "blocks.0.scalar.edit"
        assert edit.value
        with pytest.raises(InvalidRequest, match="scales it after each block"):
            relevance(llm, ids)
    with lettered_llm("gemma3n", tmp_path) as llm, pytest.raises(InvalidRequest, match="has 4 residual streams"):
        attribute(llm, ids)


def test_relevances_sum_to_the_logit(llm: LLM) -> None:
    for position, token, against in ((-1, None, None), (2, 100, None), (-1, 65, 66)):
        logit = attribute(llm, PROMPT, token, against=against, position=position).logit
        found = relevance(llm, PROMPT, token, against=against, position=position)
        assert found.logit == logit
        assert found.total == pytest.approx(logit, abs=1e-9)
        assert len(found.tokens) == len(found.pieces) == range(len(PROMPT))[position] + 1
        assert abs(found.rounding) < 2e-5, found.rounding
        assert len(repr(found).splitlines()) == 1


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2"])
def test_relevances_are_those_of_automatic_differentiation(family: str, tmp_path: Path) -> None:
    """tests/oracles/relevance_oracle.py: torch's gradients through transformers' model of the same weights."""
    wanted = json.loads((Path(__file__).parents[2] / "goldens" / "trace" / "relevance.json").read_text())[family]
    path = random_model(family, tmp_path / family, kind="safetensors", layers=3, context=256)
    with pellucid.load(path, threads=2, precise=True, kv_cache="f32") as llm:
        found = relevance(llm, wanted["ids"], 65, against=66)
    assert found.logit == pytest.approx(wanted["logit"], abs=1e-5)
    assert np.allclose(found.tokens, wanted["tokens"], atol=1e-5), found.tokens - wanted["tokens"]
    assert np.abs(found.tokens).min() > 0


def test_a_long_prompt_is_traced_in_parts(llama: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, runs, trace = relevance(llama, PROMPT, 65), list[int](), LLM.trace

    def counted(*given: Any, **named: Any) -> Any:
        runs.append(len(given))
        return trace(*given, **named)

    monkeypatch.setattr(LLM, "trace", counted)
    monkeypatch.setattr("pellucid.trace.lenses.relevance.BUDGET", 60_000)
    parts = relevance(llama, PROMPT, 65)
    assert len(runs) > 3
    assert np.array_equal(parts.tokens, whole.tokens)
    monkeypatch.setattr("pellucid.trace.lenses.relevance.BUDGET", 1000)
    with pytest.raises(InvalidRequest, match="a prompt of 22 tokens is too long for this lens: shorten it"):
        relevance(llama, PROMPT, 65)


def test_experts_contribute_what_they_add(llm: LLM) -> None:
    mixtures = [layer for layer, block in enumerate(llm.spec.blocks) if isinstance(block.feedforward, Mixture)]
    if not mixtures:
        pytest.skip("no mixture")
    found = attribute(llm, PROMPT)
    with llm.trace("blocks.*.feedforward.experts") as trace:
        llm.generate(PROMPT, max_new_tokens=1, temperature=0)
    for layer in mixtures:
        own = [one.expert for one in found.contributions if one.kind == "expert" and one.layer == layer]
        assert own == trace[f"blocks.{layer}.feedforward.experts"][0, -1].tolist()
    assert found.ranked("expert")[0].value


def test_a_head_that_is_ablated_loses_its_contribution(llama: LLM) -> None:
    before = attribute(llama, PROMPT, 65)
    last = max(one.layer for one in before.contributions if one.layer is not None)
    heads = [one for one in before.ranked("head") if one.layer == last]
    for one in heads:
        run = read(llama, PROMPT, needed(llama), [ablate(f"blocks.{last}.attention.heads[heads={one.head}]")])
        after = {part.name: part.value for part in attribute(llama, run, 65).contributions}
        assert after[one.name] == 0.0


def test_the_last_layer_of_the_lens_is_the_model(llm: LLM) -> None:
    lens = logit_lens(llm, PROMPT, top=3, tokens=[100, 101])
    with llm.trace("project.logits") as trace:
        llm.generate(PROMPT, max_new_tokens=1, temperature=0)
    logits = trace["project.logits"][0].astype(np.float64)
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    assert np.array_equal(lens.ids[-1], np.argsort(-logits, axis=-1, kind="stable")[:, :3])
    assert np.allclose(lens.probabilities[-1], np.take_along_axis(expected, lens.ids[-1], -1), rtol=1e-9)
    assert np.allclose(lens.wanted[-1], expected[:, [100, 101]], rtol=1e-9)
    higher = [(logits > logits[:, [token]]).sum(-1) for token in (100, 101)]
    assert np.array_equal(lens.ranks[-1], 1 + np.stack(higher, -1))
    assert lens.ranks.shape == lens.wanted.shape
    assert np.allclose(lens.entropy[-1], -(expected * np.log(expected)).sum(-1), rtol=1e-6)
    assert np.array_equal(lens.agreement[-1], lens.probabilities[-1][:, 0])
    assert lens.ids.shape == (len(llm.spec.blocks) + 1, len(lens.pieces), 3)
    assert len(repr(lens).splitlines()) == 1
    assert logit_lens(llm, PROMPT, positions=[-1]).ids[:, 0].tolist() == logit_lens(llm, PROMPT).ids[:, -1].tolist()


def test_vectors_through_the_head_are_the_logits_bit_for_bit(llm: LLM) -> None:
    last = f"blocks.{len(llm.spec.blocks) - 1}.residual"
    with llm.trace(last, "project.logits") as trace:
        llm.generate(PROMPT * 10, max_new_tokens=1, temperature=0)
    assert np.array_equal(llm.runner.project(trace[last][0]), trace["project.logits"][0])
    assert np.array_equal(llm.project(np.repeat(trace[last][0], 20, axis=0))[::20], trace["project.logits"][0])
    assert np.array_equal(llm.project(trace[last][0][-1]), trace["project.logits"][0][-1:])


def test_a_lens_inside_of_a_trace_has_its_edits(llama: LLM) -> None:
    edit = ablate("blocks.1.feedforward.output")
    with llama.trace("project.logits", edits=[edit]) as outer:
        inside = logit_lens(llama, PROMPT)
        llama.generate(PROMPT, max_new_tokens=1, temperature=0)
    outside = logit_lens(llama, PROMPT)
    assert inside.ids[-1, -1, 0] == outer["project.logits"][0, -1].argmax()
    assert not np.array_equal(inside.probabilities[-1], outside.probabilities[-1])
    assert len(outer.sequences) == 1


def test_scores_of_heads_are_means_of_diagonals(llama: LLM) -> None:
    found = head_scores(llama, length=20, seed=3)
    assert found.previous.shape == (3, 4)
    assert ((found.induction >= 0) & (found.induction <= 1)).all()
    layer, head, score = found.top("previous", 1)[0]
    assert score == found.previous[layer, head] == found.previous.max()
    with pytest.raises(InvalidRequest, match="must be one of"):
        found.top("other")


def test_an_induction_head_is_found(llama: LLM) -> None:
    """The pattern of an ideal induction head has a score of 1."""
    with llama.trace("blocks.0.attention.pattern") as trace:
        llama.generate([*range(60, 80)] * 2, max_new_tokens=1, temperature=0)
    T = len(trace.sequences[0])
    made = np.zeros((1, T, T))
    made[0, np.arange(19, T), np.arange(T - 19)] = 1
    assert np.diagonal(made, -19, 1, 2)[:, -20:].mean() == 1.0


def test_heads_between_two_words_are_in_order(llama: LLM) -> None:
    pieces = [llama.tokenizer.decode([one]) for one in llama.inputs.prompt("a cat, it")]
    query, key = len(pieces) - 1, 1
    found = heads_between(llama, "a cat, it", query, key)
    with llama.trace("blocks.*.attention.pattern") as trace:
        llama.generate("a cat, it", max_new_tokens=1, temperature=0)
    weights = [float(trace[f"blocks.{one.layer}.attention.pattern"][0, one.head, query, key]) for one in found]
    assert weights == [one.weight for one in found] == sorted(weights, reverse=True)
    assert len(found) == 12
    assert position_of(["a", " cat", " a"], "a", last=True) == 2
    with pytest.raises(InvalidRequest, match="no token of the text"):
        position_of(pieces, "dog")


def test_rollout_rows_sum_to_one(llama: LLM) -> None:
    found = rollout(llama, PROMPT)
    assert np.allclose(found.sum(-1), 1)
    assert (np.triu(found[-1], 1) == 0).all()


def test_the_nearest_token_of_a_token_is_itself(llm: LLM) -> None:
    for token in (65, 100, 200):
        (text, found, cosine), *others = neighbours(llm, token, 3)
        assert (found, text) == (token, llm.tokenizer.piece(token))
        assert text == ("<0xC8>" if token == 200 else llm.tokenizer.decode([token], skip_special=False))
        assert cosine == pytest.approx(1, abs=1e-9)
        assert len(others) == 2
    matrix = ModelWeights(llm.checkpoint, llm.model).values("embed.weight").astype(np.float64)
    vector = np.random.default_rng(0).standard_normal(matrix.shape[1])
    cosines = matrix @ vector / np.linalg.norm(matrix, axis=1) / np.linalg.norm(vector)
    cosines = cosines[: llm.tokenizer.vocab_size]
    assert neighbours(llm, vector, 1)[0][1] == int(cosines.argmax())
    with pytest.raises(InvalidRequest, match="vector of 3 values"):
        neighbours(llm, [1.0, 2.0, 3.0])
    with pytest.raises(InvalidRequest, match="vector is zero"):
        neighbours(llm, np.zeros(matrix.shape[1]))


def test_a_map_keeps_the_distances_that_two_dimensions_can_have(llama: LLM) -> None:
    words = ["a", "b", "c"]
    found, cosines = word_map(llama, words), similarity(llama, words)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert np.allclose(distances, np.sqrt(np.maximum(2 - 2 * cosines, 0)), atol=1e-6)  # three points lie in a plane


def test_words_are_a_list(llama: LLM) -> None:
    for words in ("words", [], ["a"] * 10_000):
        with pytest.raises(InvalidRequest, match=r"^words=.* must be a list of (1 to|words)"):
            similarity(llama, words)


def test_where_two_runs_begin_to_differ(llama: LLM) -> None:
    assert difference(llama, PROMPT, PROMPT).begins() is None
    changed = difference(llama, PROMPT, PROMPT[:-1] + "p")
    assert changed.begins() is changed.points[0]
    assert changed.points[0].position == len(changed.pieces) - 1
    with pellucid.load(llama.checkpoint.path, threads=2, precise=True) as other:
        found = difference(llama, PROMPT, PROMPT, other=other)
    assert found.points[0].relative == 0.0
    assert 0 < found.points[-1].relative < 0.1
    assert found.begins() is found.points[1]
    assert len(repr(found).splitlines()) == 1


@pytest.mark.parametrize("shape", [{"width": 32}, {"layers": 2}])
def test_runs_of_models_of_different_shapes_are_not_compared(llama: LLM, tmp_path: Path, shape: dict[str, int]) -> None:
    same = {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2}
    path = random_model("llama", tmp_path / "other.gguf", context=256, **{**same, **shape})
    with pellucid.load(path, threads=1) as other, pytest.raises(InvalidRequest, match="different shapes"):
        difference(llama, PROMPT, PROMPT, other=other)


def test_a_lens_makes_each_row_once_and_nothing_else_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_model("llama", tmp_path / "wide.gguf", layers=4, context=256, vocabulary=20_000)
    with pellucid.load(path, threads=2) as wide:
        rows, project = list[int](), type(wide.runner).project

        def counted(self: Any, vectors: Any, each: int) -> Any:
            rows.append(len(vectors))
            return project(self, vectors, each)

        with wide.trace("embed", "blocks.*.residual") as trace:
            wide.generate([70 + n for n in range(40)], max_new_tokens=1, temperature=0)
        expected = logit_lens(wide, trace.sequences[0], top=7, tokens=[100])
        monkeypatch.setattr(type(wide.runner), "project", counted)
        tracemalloc.start()
        try:
            lens = logit_lens(wide, trace.sequences[0], top=7, tokens=[100])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sum(rows) == 5 * 40
        assert min(rows[:-1]) == TOGETHER
        assert peak < 3 * 4 * TOGETHER * wide.runner.width, "two blocks of float32 logits, and no copy in float64"
        assert lens.as_dict() == expected.as_dict()
        some = logit_lens(wide, trace.sequences[0], positions=[3, -1])
        assert sum(rows) == 5 * 40 + 5 * 2
        assert np.array_equal(some.ids, logit_lens(wide, trace.sequences[0]).ids[:, [3, -1]])


def test_positions_out_of_range(llama: LLM) -> None:
    lens = logit_lens(llama, PROMPT)
    for call, said in (
        (lambda: attribute(llama, PROMPT, 65, position=99), "position=99: must be a whole number from -22 to 21"),
        (lambda: token_contributions(llama, PROMPT, position=-23), "position=-23"),
        (lambda: relevance(llama, PROMPT, position=1.5), "position=1.5"),  # type: ignore[arg-type]
        (lambda: lens.top(99), "layer=99"),
        (lambda: lens.top(0, 99), "position=99"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            call()
    assert lens.top(-1, -1) == lens.top(3, 21)


def test_a_lens_of_values_that_are_not_finite_is_refused(llama: LLM) -> None:
    with llama.trace("embed", "blocks.*.residual[tokens=:30]") as trace:
        llama.generate(PROMPT * 3, max_new_tokens=1, temperature=0)
    with pytest.raises(InvalidRequest, match="was not recorded: trace all positions"):
        logit_lens(llama, trace.sequences[0])
    with llama.trace("embed", "blocks.*.residual", budget=len(llama.inputs.prompt(PROMPT)) * 4 * 64 * 4) as trace:
        llama.generate(PROMPT, max_new_tokens=3, temperature=0, ignore_eos=True)
    assert trace.dropped
    with pytest.raises(InvalidRequest, match="were not recorded"):
        logit_lens(llama, trace.sequences[0])


def test_what_an_edit_adds_is_no_rounding(llama: LLM) -> None:
    from pellucid.trace.lenses.attribution import needed
    from pellucid.trace.traced_model import read

    edit = add("blocks.1.attention.output", np.linspace(-1, 1, 64))
    run = read(llama, PROMPT, needed(llama), [edit])
    found = attribute(llama, run, 65)
    assert found.total == pytest.approx(found.logit, abs=1e-9)
    (edited,) = found.ranked("edit")
    assert (edited.name, edited.layer) == ("blocks.1.attention.edit", 1)
    assert abs(edited.value) > 10 * max(abs(one.value) for one in found.ranked("rounding"))
    assert not attribute(llama, PROMPT, 65).ranked("edit")
