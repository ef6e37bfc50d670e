"""Gradients equal the automatic differentiation of torch; attributions add up; what has no gradient is refused."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lettered import lettered_llm
from support.tiny import GOLDENS, TINY, model_runner

import pellucid
from pellucid.engine.recorder import run_with_recorder
from pellucid.errors import InvalidRequest
from pellucid.kernels.ops.elementwise import KINDS, activation_reference, derivative
from pellucid.llm import LLM
from pellucid.model.read import read_model
from pellucid.testing import random_model
from pellucid.trace import (
    JacobianLens,
    attribution_patch,
    divergence,
    gradients,
    integrated_gradients,
    log_probability,
    logit_difference,
    patch_sweep,
    probability,
    replace,
    traced_model,
)
from pellucid.trace.backward import layer_products, products
from pellucid.trace.backward.gradients import BackwardPass
from pellucid.trace.backward.reverse_walk import Tape, Versions
from pellucid.trace.traced_model import ModelWeights
from pellucid.weights.open import open_checkpoint

GOLDEN = np.load(GOLDENS.parent / "gradients" / "gradients.npz")
NAMES = sorted({key.split("/")[0] for key in GOLDEN})
CLEAN, CORRUPTED = "the cat sat on the mat", "the dog sat on the mat"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("gradients") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=1024)
    llm = pellucid.load(path, threads=2, precise=True, kv_cache="f32")
    yield llm
    llm.close()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_torch(name: str) -> None:
    """The greatest error is 1e-4 of the gradient's range, for two copies of the text in one backward pass."""
    ids = GOLDEN[f"{name}/ids"].tolist()
    checkpoint = open_checkpoint(TINY[name])
    model = read_model(checkpoint)
    with model_runner(TINY[name], threads=2, activation_bits=24) as runner:
        last = "altup.spread" if runner.spec.altup else "residual"
        names = [f"blocks.{layer}.{last}" for layer in range(len(runner.spec.blocks))]
        backward = BackwardPass(
            Versions(runner.plan.source or runner.plan), [runner.plan.points[name] for name in names]
        )
        tapes = []
        for _ in range(2):
            tape = Tape(backward.versions, backward.needs, len(ids), len(ids) - 1, None)
            (logits,) = [x for x in run_with_recorder(runner, ids, tape, len(ids) - 1) if len(x)]
            tapes.append(tape)
        seed = np.zeros((2, logits.shape[1]), np.float32)
        seed[:, 3], seed[:, 7] = 1, -1
        found = backward.run(tapes, seed, ModelWeights(checkpoint, model))
    for layer, point in enumerate(names):
        expected = GOLDEN[f"{name}/{layer}"]
        for own in found:
            gradient = own[point].reshape(expected.shape)
            assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max(), point


@pytest.mark.parametrize("name", ["qwen3_5", "falcon_h1"])
def test_states_between_are_computed_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan keeps the state of a few tokens; the gradients do not depend on how many."""
    monkeypatch.setattr(layer_products, "CHUNK", 2)
    test_gradients_are_those_of_torch(name)


@pytest.mark.parametrize("kind", KINDS)
@given(st.floats(-6, 6), st.floats(-9, 9))
def test_derivatives_of_activations(kind: str, x: float, up: float) -> None:
    if kind.startswith("relu") and abs(x) < 1e-3:
        return
    if kind == "clamped_silu" and (abs(x - 7) < 1e-3 or abs(abs(up) - 7) < 1e-3):
        return
    step, at, of = 1e-6, np.array([x]), np.array([up])
    y, slope, of_up = derivative(kind, at, of)
    assert y[0] == pytest.approx(activation_reference(kind, at, of)[0], rel=1e-9, abs=1e-12)
    numeric = (activation_reference(kind, at + step, of) - activation_reference(kind, at - step, of)) / (2 * step)
    assert slope[0] == pytest.approx(numeric[0], rel=1e-4, abs=1e-6)
    numeric = (activation_reference(kind, at, of + step) - activation_reference(kind, at, of - step)) / (2 * step)
    assert of_up[0] == pytest.approx(numeric[0], rel=1e-4, abs=1e-6)


def test_gradients_of_targets(llm: LLM) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(llm.spec.output_width).astype(np.float32)
    reference_logits = rng.standard_normal(llm.spec.output_width).astype(np.float32)
    for target in (
        logit_difference(llm, 65, 66),
        log_probability(llm, 65),
        probability(llm, 65),
        divergence(reference_logits),
    ):
        gradient = target.gradient(logits)
        for token in (65, 66, 100):
            values = []
            for step in (2.0**-8, -(2.0**-8)):
                moved = logits.copy()
                moved[token] += step
                values.append(target(moved))
            assert gradient[token] == pytest.approx((values[0] - values[1]) * 2**7, rel=2e-3, abs=1e-6)


def test_points_of_every_kind_against_differences(llm: LLM) -> None:
    """A small change of a value changes the target by its inner product with the gradient."""
    target, rng = logit_difference(llm, 65, 66), np.random.default_rng(2)
    attention, feedforward = ["q", "k_rotary", "v", "heads", "output"], ["gate", "up", "hidden"]
    names = ["embed", *(f"blocks.1.attention.{name}" for name in attention)]
    names += [*(f"blocks.2.feedforward.{name}" for name in feedforward), "norm"]
    own = gradients(llm, CLEAN, target, names)
    assert own.value == pytest.approx(target(own.logits))
    with llm.trace(*names) as trace:
        llm.generate(CLEAN, max_new_tokens=1, temperature=0)
    for name in names:
        values = trace[name][0]
        if name == "norm":  # after the last block, only the last token counts
            values = values[-1:]
        assert own[name].shape == values.shape
        assert own.values[name].tobytes() == values.tobytes()
        direction = rng.standard_normal(values.shape)
        size = 0.02 * float(np.abs(values).mean())
        ends = []
        for sign in (1, -1):
            where = f"{name}[tokens=-1]" if name == "norm" else name
            edit = replace(where, (values + sign * size * direction).astype(np.float32))
            with llm.trace("project.logits[tokens=-1]") as moved:
                llm.generate(CLEAN, edits=[edit], max_new_tokens=1, temperature=0)
            ends.append(target(moved["project.logits"][0, 0]))
        expected = float((own[name] * direction).sum())
        scale = float(np.sqrt((own[name].astype(np.float64) ** 2).sum()))
        assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(expected, abs=0.02 * scale), name


def test_gradients_of_patterns_and_scores(llm: LLM) -> None:
    target, point = logit_difference(llm, 65, 66), "blocks.1.attention"
    own = gradients(llm, CLEAN, target, [f"{point}.pattern", f"{point}.scores"])
    with llm.trace(f"{point}.pattern", f"{point}.scores") as trace:
        llm.generate(CLEAN, max_new_tokens=1, temperature=0)
    pattern = trace[f"{point}.pattern"][0]
    assert own[f"{point}.pattern"].shape == own[f"{point}.scores"].shape == pattern.shape
    changed, step = pattern.copy(), 0.01
    changed[2, -1, 1] += step
    with llm.trace("project.logits[tokens=-1]") as moved:
        llm.generate(CLEAN, edits=[replace(f"{point}.pattern", changed)], max_new_tokens=1, temperature=0)
    found = (target(moved["project.logits"][0, 0]) - own.value) / step
    assert found == pytest.approx(float(own[f"{point}.pattern"][2, -1, 1]), rel=0.05, abs=1e-3)
    assert np.abs(own[f"{point}.scores"].sum(-1)).max() < 1e-4 * np.abs(own[f"{point}.scores"]).max()


def test_prompts_of_one_backward_pass(llm: LLM) -> None:
    target = [logit_difference(llm, 65, 66), probability(llm, 70)]
    together = gradients(llm, [CLEAN, CLEAN + " and the dog"], target, ["blocks.*.residual"])
    for prompt, one, own in zip([CLEAN, CLEAN + " and the dog"], target, together):
        alone = gradients(llm, prompt, one, ["blocks.*.residual"])
        assert alone.value == own.value
        for name, values in own.points.items():
            np.testing.assert_allclose(values, alone[name], rtol=1e-4, atol=1e-6 * np.abs(values).max())


def test_attribution_patching_approximates_patching(llm: LLM) -> None:
    """For a small change the first order is the effect."""
    target = logit_difference(llm, 65, 66)
    for by in ("token", "head"):
        exact = patch_sweep(llm, CLEAN, CORRUPTED, target, by=by)  # type: ignore[arg-type]
        found = attribution_patch(llm, CLEAN, CORRUPTED, target, by=by)  # type: ignore[arg-type]
        assert found.values.shape == exact.values.shape
        assert list(found.axes) == list(exact.axes)
        low, high = np.corrcoef(found.values.ravel(), exact.values.ravel())[0]
        assert high > 0.5, (by, low)
    last = found.axes["layer"][-1]
    assert last == 2


def test_a_jacobian_lens_of_several_streams_is_refused(tmp_path: Path) -> None:
    with lettered_llm("gemma3n", tmp_path) as streams, pytest.raises(InvalidRequest, match="4 residual streams"):
        JacobianLens.fit(streams, [[3] * 40], skip=2)


def test_an_operation_without_a_product(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(products.PRODUCTS, "norm")
    with pytest.raises(InvalidRequest, match="gradients do not go through"):
        gradients(llm, CLEAN, logit_difference(llm, 65, 66), ["embed"])


def test_threads_share_the_weights_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced_model, "SMALL", 1)
    path = tmp_path / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=512)
    before = threading.active_count()
    with pellucid.load(path, threads=2) as own, ThreadPoolExecutor(4) as pool:
        target = logit_difference(own, 65, 66)
        found = list(pool.map(lambda _: gradients(own, CLEAN, target, ["blocks.*.residual"]), range(12)))
        for one in found[1:]:
            for name, values in one.points.items():
                np.testing.assert_array_equal(values, found[0][name])
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before, threading.enumerate()


def test_a_matrix_of_many_rows_is_read_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced_model, "MOST_SUMMED", 32)
    reads, real = list[str](), type(llm.checkpoint).read

    def read(checkpoint: Any, name: str, *more: Any) -> Any:
        reads.append(name)
        return real(checkpoint, name, *more)

    monkeypatch.setattr(type(llm.checkpoint), "read", read)
    weights = ModelWeights(llm.checkpoint, llm.model, 1 << 24)
    x = np.ones((3, 512), np.float32)
    first, count = weights.product(x, "blocks.0.feedforward.up.weight"), len(reads)
    assert count > 0
    np.testing.assert_array_equal(weights.product(x, "blocks.0.feedforward.up.weight"), first)
    assert len(reads) == count


def test_integrated_gradients_add_up(llm: LLM) -> None:
    found = integrated_gradients(llm, CLEAN, logit_difference(llm, 65, 66), baseline=_mean(llm), steps=24)
    assert len(found.values) == len(found.pieces)
    assert abs(found.rest) < 0.05 * max(1.0, float(np.abs(found.values).sum()))
    assert found.value - found.baseline == pytest.approx(float(found.values.sum()) + found.rest)
    assert "TokenAttribution(" in repr(found)
    assert "<table" in found._repr_html_()


def _mean(llm: LLM) -> Any:
    with llm.trace("embed") as trace:
        llm.generate(CLEAN, max_new_tokens=1, temperature=0)
    return 0.5 * trace["embed"][0]


def test_what_has_no_gradient(llm: LLM) -> None:
    target = logit_difference(llm, 65, 66)
    calls: list[tuple[Any, str]] = [
        (lambda: gradients(llm, CLEAN, lambda x: 0.0, ["embed"]), "it has no gradient: use logit_difference"),
        (lambda: gradients(llm, CLEAN, target, ["nothing"]), "no point has this name"),
        (lambda: gradients(llm, CLEAN, target, ["sample.top_k"]), "it has no gradient: choose a value"),
        (lambda: gradients(llm, CLEAN, target, ["embed[dims=3]"]), "leave brackets out"),
        (lambda: gradients(llm, CLEAN, target, ["embed"], budget=1000), "budget=1,000: the backward pass of"),
        (lambda: gradients(llm, [CLEAN, CLEAN], [target] * 3, ["embed"]), "3 targets for 2 prompts"),
        (lambda: gradients(llm, CLEAN, target, ["embed"])["norm"], "there is no gradient of it"),
    ]
    for call, said in calls:
        with pytest.raises(InvalidRequest, match=said) as refused:
            call()
        assert "\n" not in str(refused.value)
    assert math.isfinite(gradients(llm, CLEAN, target, ["embed"]).value)
