"""Each family on tiny random models, against transformers in float32 (tests/oracles/tiny_oracle.py).

Two steps: the float64 reference of the spec equals transformers within rounding, which tests the spec; the model runner
equals the reference, which tests the plan and its kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.blocks import random_blocks
from support.reference import Reference, as_float16
from support.schedule import QUANTISED, write_quantised_llama
from support.tiny import DECODERS, OF_FAMILY, SOURCES, TINY, model_runner, opened, table_for, write_llama_gguf

from pellucid import pipeline
from pellucid.model.family import known_families
from pellucid.model.shapes import expected_shapes
from pellucid.model.spec import Mixture
from pellucid.plan.bind import layouts
from pellucid.plan.plan import Vector, Weights
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cache_layout import LayerShape
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import formats


def golden(name: str) -> tuple[list[int], np.ndarray]:
    with np.load(TINY[name] / "expected.npz") as file:
        return file["input_ids"].tolist(), file["logits" if "logits" in file else "hidden"]


def assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    """Compare within float32 rounding. Measured: largest 1.2e-5, mean 1.2e-6, for logits up to 12."""
    difference, scale = np.abs(got - wanted), max(1.0, float(np.abs(wanted).max()) / 10)
    assert difference.max() < 5e-5 * scale
    assert difference.mean() < 5e-6 * scale


def test_every_family_has_a_tiny_model() -> None:
    others = {name for name in SOURCES if name in known_families()}
    assert {*OF_FAMILY, *others} == set(known_families())


@pytest.mark.parametrize("name", TINY)
def test_spec_means_what_transformers_computes(name: str) -> None:
    ids, wanted = golden(name)
    with opened(TINY[name]) as (checkpoint, model):
        reference = Reference(checkpoint, model)
        got = reference.logits(ids) if model.spec.head else reference.rows(ids)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=max(5e-5, 1e-5 * float(np.abs(wanted).max())))


FLOATS = [name for name in DECODERS if not name.endswith("-mxfp4")]


@pytest.mark.parametrize("name", FLOATS)
def test_logits_of_every_position(name: str) -> None:
    ids, wanted = golden(name)
    with opened(TINY[name]) as (checkpoint, model), model_runner(TINY[name], threads=2) as net:
        got = net.forward([Chunk(table_for(net.spec, len(ids)), ids, outputs=len(ids))])
        assert_close(got, Reference(checkpoint, model).logits(ids))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_logits_of_published_mxfp4() -> None:
    ids, wanted = golden("gpt_oss-mxfp4")
    with model_runner(TINY["gpt_oss-mxfp4"], threads=2) as net:
        got = net.forward([Chunk(BlockTable(), ids, outputs=len(ids))])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


ROUNDED_MORE = {"falcon-alibi-odd": (3e-3, 3e-4), "gemma4_moe-odd": (4e-3, 4e-4)}
"""Models with more values on a rounding border: largest and mean difference."""


@pytest.mark.parametrize("name", FLOATS)
def test_logits_with_keys_and_values_in_float16(name: str) -> None:
    """float16 is the default for floating-point weights. A value on a rounding border may differ: measured 2.2e-3."""
    ids, wanted = golden(name)
    with opened(TINY[name]) as (checkpoint, model), model_runner(TINY[name], activation_bits=8) as net:
        assert {layer.kv_dtype for layer in net.plan.layers if isinstance(layer, LayerShape)} == {"f16"}
        got = net.forward([Chunk(table_for(net.spec, len(ids)), ids, outputs=len(ids))])
        difference = np.abs(got - Reference(checkpoint, model, as_float16).logits(ids))
    scale = max(1.0, float(np.abs(wanted).max()) / 12)  # the difference grows with the logits
    most, mean = ROUNDED_MORE.get(name, (3e-3, 2e-4))
    assert difference.max() < most * scale
    assert difference.mean() < mean * scale
    # Rounding may decide a tie of a router's scores: the token then has other experts.
    other_experts = 2 if any(isinstance(block.feedforward, Mixture) for block in model.spec.blocks) else 0
    if model.spec.attention.latent and other_experts:  # all heads share the cached numbers
        other_experts = len(ids) // 2
    assert (np.abs(got - wanted).max(-1) > 0.02 * scale).sum() <= other_experts


@pytest.mark.parametrize("name", DECODERS)
def test_token_by_token_gives_the_same_bits(name: str) -> None:
    ids, _ = golden(name)
    with model_runner(TINY[name]) as net:
        together = net.forward([Chunk(table_for(net.spec, len(ids)), ids, outputs=len(ids))])
        sequence = table_for(net.spec, len(ids))
        one_by_one = [net.forward([Chunk(sequence, [token])])[0] for token in ids]
    np.testing.assert_array_equal(np.stack(one_by_one), together)


def test_sentence_vector_is_the_mean_of_the_hidden_states() -> None:
    ids, hidden = golden("bert")
    with opened(TINY["bert"]) as (checkpoint, model), model_runner(TINY["bert"], context=64) as net:
        (vector,) = net.forward([Chunk(BlockTable(), ids, outputs=0)])
        assert_close(net.array("x")[: len(ids)], Reference(checkpoint, model).rows(ids))
    mean = hidden.mean(0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-4)


def test_gguf_llama_pairs_neighbours(tmp_path) -> None:
    ids = list(range(40))
    path = write_llama_gguf(tmp_path / "tiny.gguf")
    with opened(path) as (checkpoint, model), model_runner(path) as net:
        got = net.forward([Chunk(BlockTable(), ids, outputs=len(ids))])
        assert_close(got, Reference(checkpoint, model).logits(ids))


# Measured with activations of 24 bits and float32 keys and values: 1.5e-5, for logits up to 7; with
# activations of 8 bits and bfloat16: 0.95 and 2.1e-2.
@pytest.mark.parametrize(("activation_bits", "most", "mean"), [(24, 5e-5, 1e-5), (8, 2.0, 5e-2)])
@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_llama_is_the_llama_of_its_decoded_weights(
    name: str, activation_bits: int, most: float, mean: float, tmp_path
) -> None:
    ids, form = [7 * i % 48 for i in range(40)], formats()[name]
    weights = decode_blocks(form, random_blocks(form, 0, 64, 256 // form.block, low=-14))
    norm = float(1 / np.linalg.norm(weights, axis=1).mean())  # products near 1
    path = write_quantised_llama(tmp_path / "tiny.gguf", name, norm=norm)
    with opened(path) as (checkpoint, model), model_runner(path, threads=2, activation_bits=activation_bits) as net:
        got = net.forward([Chunk(BlockTable(), ids, outputs=len(ids))])
        want = Reference(checkpoint, model).logits(ids)
    difference = np.abs(got - want)
    assert difference.max() < most
    assert difference.mean() < mean


@pytest.mark.parametrize("name", TINY)
def test_plan_uses_every_slot_of_the_spec_and_no_other(name: str) -> None:
    with opened(TINY[name]) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
    values = [value for op in plan.operations for value in op.fields.values()]
    assert {v.slot for v in values if isinstance(v, (Weights, Vector))} == set(expected_shapes(model.spec))
