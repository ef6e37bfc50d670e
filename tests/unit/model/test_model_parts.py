"""Parts of a spec that no family uses yet, and slots filled from parts of tensors, against the reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support.in_memory import InMemory, random_model, running
from support.reference import Reference

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.model import read as reading
from pellucid.model.outputs import Head
from pellucid.model.positions import RelativeBuckets, Rotary, RotaryScaling
from pellucid.model.read import read_model
from pellucid.model.shapes import expected_shapes
from pellucid.model.slot_reader import SlotReader
from pellucid.model.spec import (
    BUCKETS_CONTEXT,
    Attention,
    Block,
    Embedding,
    FeedForward,
    Mixture,
    ModelSpec,
    Norm,
    Router,
)
from pellucid.model.weight_map import Model, Slot
from pellucid.pipeline import build_plan
from pellucid.plan.bind import layouts
from pellucid.plan.plan import bucket_of
from pellucid.plan.position import alibi_slopes
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.weights.quant.format import lookup

NORM = Norm("rms", 1e-5)
ATTENTION = Attention(4, 2, 32, 32**-0.5, rotary=Rotary(10_000.0, 32, "half"))
EXPERT = FeedForward(40, "silu", gated=True)
IDS = [(7 * i + 3) % 64 for i in range(40)]


def spec(*attentions: Attention, widths: tuple[int, ...] = (96, 96)) -> ModelSpec:
    blocks = tuple(
        Block(attention, FeedForward(width, "silu", gated=True), NORM, "pre")
        for attention, width in zip(attentions * 2, widths)
    )
    return ModelSpec("test", "test", 128, Embedding(64, 64), blocks, final_norm=NORM, head=Head(tied=True))


def with_blocks(**changes: Any) -> ModelSpec:
    plain = spec(ATTENTION)
    return replace(plain, blocks=tuple(replace(block, **changes) for block in plain.blocks))


def odd_widths(width: int, head_dim: int, norm: Norm) -> ModelSpec:
    """A model whose dimensions are not multiples of a vector."""
    attention = Attention(3, 1, head_dim, head_dim**-0.5, rotary=Rotary(500.0, head_dim // 2 * 2, "half"))
    made = spec(attention, widths=(30, 30))
    blocks = tuple(replace(block, norm=norm) for block in made.blocks)
    return replace(made, embedding=Embedding(65, width), blocks=blocks, final_norm=norm)


PARTS = {
    "values narrower than keys": spec(replace(ATTENTION, value_dim=16)),
    "values wider than keys": spec(replace(ATTENTION, value_dim=64)),
    "sinks": spec(replace(ATTENTION, sinks=True)),
    "shared keys and values": spec(ATTENTION, replace(ATTENTION, shared=0)),
    "keys used as values": spec(replace(ATTENTION, v_norm=NORM, keys_as_values=True)),
    "alibi": spec(replace(ATTENTION, rotary=None, alibi=True)),
    "alibi of 6 heads": spec(replace(ATTENTION, heads=6, rotary=None, alibi=True)),
    "alibi both ways": spec(replace(ATTENTION, rotary=None, alibi=True, causal=False)),
    "relative buckets": spec(replace(ATTENTION, rotary=None, relative=RelativeBuckets(8, 20))),
    "relative buckets both ways": spec(replace(ATTENTION, rotary=None, relative=RelativeBuckets(8, 20), causal=False)),
    "relative buckets of each layer": spec(replace(ATTENTION, rotary=None, relative=RelativeBuckets(6, 30, own=True))),
    "layers of other widths": spec(
        ATTENTION,
        replace(ATTENTION, heads=2, kv_heads=1, head_dim=64, rotary=Rotary(500.0, 64, "half")),
        widths=(96, 160),
    ),
    **{
        f"{placement} blocks": with_blocks(placement=placement, residual_scale=scale)
        for placement, scale in (("output", 1.0), ("parallel", 1.0), ("shared", 1.0), ("sandwich", 0.22), ("pre", 0.22))
    },
    "shared norms without a bias": with_blocks(placement="shared", norm=Norm("layer", 1e-5, bias=False)),
    "norms without weights": with_blocks(norm=Norm("layer", 1e-5, weight=False, bias=False)),
    "RMS norms without weights": with_blocks(norm=Norm("rms", 1e-5, weight=False)),
    "norms of all queries": spec(replace(ATTENTION, qk_norm=NORM, qk_norm_whole=True)),
    "yarn": spec(
        replace(
            ATTENTION,
            rotary=Rotary(10_000.0, 32, "half", RotaryScaling("yarn", 4.0, trained_context=32, magnitude=1.139)),
        )
    ),
    "squares": with_blocks(feedforward=FeedForward(96, "relu2", gated=False, bias=True)),
    "a head with a scale and a bias": replace(spec(ATTENTION), head=Head(tied=True, softcap=5.0, bias=True, scale=0.3)),
    "a head of its own with a bias": replace(spec(ATTENTION), head=Head(tied=False, bias=True)),
    **{
        name: with_blocks(feedforward=kind)
        for name, kind in {
            "experts": Mixture(Router(8, 2), EXPERT),
            "experts with normalised weights": Mixture(Router(6, 3, normalize=True, scale=2.5), EXPERT),
            "experts with biases": Mixture(Router(5, 2, bias=True), replace(EXPERT, bias=True)),
            "experts without gates": Mixture(Router(4, 1), FeedForward(24, "relu2", gated=False)),
            "a shared expert": Mixture(Router(4, 2), EXPERT, shared=FeedForward(72, "silu", gated=True)),
            "a shared expert with a gate": Mixture(
                Router(4, 2), EXPERT, shared=FeedForward(72, "silu", gated=True), shared_gate=True
            ),
            "groups of experts": Mixture(
                Router(12, 3, "sigmoid", True, 1.5, correction=True, groups=4, kept=2, group_best=2), EXPERT
            ),
            "groups by their best expert": Mixture(Router(12, 3, groups=3, kept=2), EXPERT),
            "experts with clamped activations": Mixture(
                Router(4, 2, normalize=True),
                FeedForward(40, "clamped_silu", gated=True, bias=True, limit=0.5, sharpness=2.0),
            ),
            "all experts": Mixture(Router(3, 3), EXPERT),
        }.items()
    },
    "experts in the second layer": replace(
        spec(ATTENTION),
        blocks=(
            spec(ATTENTION).blocks[0],
            replace(spec(ATTENTION).blocks[1], feedforward=Mixture(Router(40, 20), EXPERT)),
        ),
    ),
    **{
        f"a model of width {width}, heads of {head_dim}": odd_widths(width, head_dim, norm)
        for width, head_dim, norm in (
            (40, 24, NORM),
            (72, 72, Norm("layer", 1e-5)),
            (50, 80, Norm("layer", 1e-5, weight=False, bias=False)),
            (33, 5, NORM),
        )
    },
    "narrow heads with norms": spec(
        replace(ATTENTION, head_dim=40, value_dim=24, qk_norm=NORM, rotary=Rotary(500.0, 20, "interleaved"))
    ),
    "narrow heads with norms of all queries": spec(
        replace(ATTENTION, head_dim=12, value_dim=7, qk_norm=NORM, qk_norm_whole=True, rotary=None)
    ),
    "wide layers first": spec(replace(ATTENTION, heads=8), replace(ATTENTION, heads=2), widths=(256, 32)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_means_what_the_plain_reading_says(name: str) -> None:
    checkpoint, model = random_model(PARTS[name])
    with running(checkpoint, model) as runner:
        got = runner.forward([Chunk(BlockTable(), IDS, outputs=len(IDS))])
        again = BlockTable()
        cut = (
            []
            if name.endswith("both ways")
            else [runner.forward([Chunk(again, IDS[i : i + 9], outputs=len(IDS[i : i + 9]))]) for i in range(0, 40, 9)]
        )
    np.testing.assert_allclose(got, Reference(checkpoint, model).logits(IDS), rtol=0, atol=5e-5)
    if cut:
        np.testing.assert_array_equal(np.concatenate(cut), got)


def test_the_slopes_of_alibi_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi_slopes(12) == (*alibi_slopes(8), *(2.0 ** -(i + 0.5) for i in range(4)))


@pytest.mark.parametrize(
    ("both_sides", "limits"),
    [
        (True, [8, 12, 16, 23, 32, 46, 64, 91]),
        (False, [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]),
    ],
)
def test_buckets_begin_at_the_distances_of_transformers(both_sides: bool, limits: list[int]) -> None:
    """``limits`` are the first distances of the buckets in transformers 5.24, from the first bucket of several."""
    distances = np.arange(200)
    found = bucket_of(-distances, RelativeBuckets(32, 128), both_sides=both_sides)
    exact = 8 if both_sides else 16
    assert found.tolist() == [d if d < exact else exact - 1 + sum(d >= n for n in limits) for d in range(200)]
    ahead = bucket_of(distances[1:], RelativeBuckets(32, 128), both_sides=both_sides)
    assert ahead.tolist() == (found[1:] + 16 if both_sides else 0 * found[1:]).tolist()


def test_a_model_with_relative_buckets_takes_a_longer_context_than_its_file_states() -> None:
    assert spec(replace(ATTENTION, rotary=None, relative=RelativeBuckets(8, 20))).max_context == BUCKETS_CONTEXT
    assert spec(ATTENTION, replace(ATTENTION, relative=RelativeBuckets(8, 20))).max_context == 128


CROSS = Attention(4, 2, 32, 32**-0.5, causal=False)
LAYER_NORM = Norm("layer", 1e-5)


def encoder_decoder(cross: Attention = CROSS, width: int = 64, **changes: Any) -> ModelSpec:
    """An encoder of width ``width`` and a decoder. ``changes`` replace fields of all their blocks."""
    decoder = spec(ATTENTION)
    encoder = spec(replace(ATTENTION, causal=False), widths=(80, 96, 72))
    encoder = replace(encoder, embedding=Embedding(64, width), head=None).with_blocks(**changes)
    return replace(decoder.with_blocks(cross=cross, **changes), encoder=encoder)


ENCODER_DECODERS = {
    "plain": encoder_decoder(),
    "post": encoder_decoder(placement="post", norm=LAYER_NORM),
    "sandwich": encoder_decoder(placement="sandwich"),
    "biases": encoder_decoder(replace(CROSS, bias=True, output_bias=True)),
    "a wider encoder": encoder_decoder(width=96),
    "narrow heads with norms": encoder_decoder(replace(CROSS, head_dim=24, value_dim=40, qk_norm=NORM)),
    "soft-capped scores, scaled outputs": encoder_decoder(replace(CROSS, softcap=2.0, output_scale=0.3)),
    "relative buckets": replace(
        encoder_decoder().with_attention(rotary=None, relative=RelativeBuckets(8, 20)),
        encoder=encoder_decoder().encoder.with_attention(rotary=None, relative=RelativeBuckets(8, 20)),
    ),
}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_decoder_attends_to_the_output_of_its_encoder(name: str) -> None:
    checkpoint, model = random_model(ENCODER_DECODERS[name])
    sources, answer = [IDS, IDS[5:30], IDS[::-1]], IDS[3:15]
    with running(checkpoint, model, tokens=128) as runner:
        tables = [BlockTable() for _ in sources]
        runner.forward([Chunk(table, ids, 0, encodes=True) for table, ids in zip(tables, sources)])
        got = [runner.forward([Chunk(BlockTable(), answer, len(answer), table)]) for table in tables]
        # A source alone, and beside tokens of another source. Tokens one by one, and answers together.
        again, one = BlockTable(), BlockTable()
        beside = [Chunk(again, sources[1], 0, encodes=True), Chunk(one, answer[:1], 1, tables[0])]
        rows = [runner.forward(beside)]
        rows += [runner.forward([Chunk(one, [token], 1, tables[0])]) for token in answer[1:]]
        both = [BlockTable(), BlockTable()]
        runner.forward([Chunk(table, answer[:-1], 0, source) for table, source in zip(both, (again, tables[2]))])
        last = runner.forward([Chunk(table, answer[-1:], 1, source) for table, source in zip(both, (again, tables[2]))])
        steps = runner.encoder.cache.kv.layers
    for ids, logits in zip(sources, got):
        np.testing.assert_allclose(logits, Reference(checkpoint, model, source=ids).logits(answer), rtol=0, atol=5e-5)
    np.testing.assert_array_equal(np.concatenate(rows), got[0])
    np.testing.assert_array_equal(last, np.stack([got[1][-1], got[2][-1]]))
    assert len(steps) == 3  # two cross attentions, and one layer that all blocks of the encoder share


def test_options_that_cross_attention_does_not_have_are_refused() -> None:
    wrong = encoder_decoder(replace(CROSS, window=9, rotary=ATTENTION.rotary))
    checkpoint, model = random_model(wrong)
    with pytest.raises(UnsupportedModel, match="cross attention has no window, rotary"):
        build_plan(model.spec, layouts(checkpoint, model))


def fused(spec: ModelSpec) -> tuple[InMemory, Model, Model]:
    """The same model twice: with a tensor per slot, and with q, k, v in one tensor, gate in two tensors, up in half a
    tensor and down transposed.
    """
    plain, model = random_model(spec)
    arrays = {name: plain.data(name).view(np.float32).reshape(one.shape) for name, one in plain.tensors.items()}
    slots = dict(model.slots)
    for i, block in enumerate(spec.blocks):
        at, kind = f"blocks.{i}", block.attention
        rows = [kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim, kind.kv_heads * kind.value_dim]
        names = [f"{at}.attention.{n}.weight" for n in "qkv"]
        arrays[f"{at}.qkv"] = np.concatenate([arrays.pop(name) for name in names])
        for name, stop in zip(names, np.cumsum(rows).tolist()):
            slots[name] = Slot(f"{at}.qkv", rows=(stop - rows[names.index(name)], stop))
        down, gate = f"{at}.feedforward.down.weight", f"{at}.feedforward.gate.weight"
        arrays[f"{at}.down_t"] = arrays.pop(down).T
        slots[down] = Slot(f"{at}.down_t", transpose=True)
        whole = arrays.pop(gate)
        arrays[f"{at}.gate.0"], arrays[f"{at}.gate.1"] = whole[:32], whole[32:]
        slots[gate] = (Slot(f"{at}.gate.0"), Slot(f"{at}.gate.1"))
        up = f"{at}.feedforward.up.weight"
        arrays[f"{at}.ups"] = np.stack(
            [np.zeros_like(arrays[up]), arrays[up]]
        )  # (2, F, D): the slot reads the second expert
        count = len(arrays.pop(up))
        slots[up] = Slot(f"{at}.ups", rows=(count, 2 * count))
    return plain, model, Model(spec, slots, "layers"), InMemory(arrays)  # type: ignore[return-value]


def read(checkpoint: InMemory, parts: Model) -> Model:
    """The checked model of a checkpoint whose family makes ``parts`` of it."""
    family = SimpleNamespace(
        name="test", readers=lambda kind: {"test": lambda checkpoint, config: parts}, unused=(), skipped=()
    )
    checkpoint.kind, checkpoint.metadata = "gguf", {"general.architecture": "test"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "family_of", lambda architecture, kind: family)
        return read_model(checkpoint)  # type: ignore[arg-type]


def test_slots_that_are_parts_of_tensors_have_the_bits_of_whole_ones() -> None:
    plain, model, parts, checkpoint = fused(spec(ATTENTION))  # type: ignore[misc]
    ignored = [Slot(f"blocks.{i}.ups", rows=(0, 96)) for i in range(len(parts.spec.blocks))]
    assert read(checkpoint, replace(parts, ignored=ignored)).slots == parts.slots
    with running(plain, model) as runner:
        wanted = runner.forward([Chunk(BlockTable(), IDS, outputs=len(IDS))])
    with running(checkpoint, parts) as runner:
        got = runner.forward([Chunk(BlockTable(), IDS, outputs=len(IDS))])
    np.testing.assert_array_equal(got, wanted)


def test_rows_that_no_slot_takes_are_refused() -> None:
    _, _, parts, checkpoint = fused(spec(ATTENTION))  # type: ignore[misc]
    with pytest.raises(UnsupportedModel, match=r"blocks\.0\.ups: rows 0 to 96 are not used"):
        read(checkpoint, parts)


def test_rows_that_a_tensor_lacks_are_refused() -> None:
    _, _, parts, checkpoint = fused(spec(ATTENTION))  # type: ignore[misc]
    slots = {**parts.slots, "blocks.0.attention.q.weight": Slot("blocks.0.qkv", rows=(200, 300))}
    with pytest.raises(FileFormatError, match="tensor has 256 rows; the model needs rows 200 to 300"):
        read(checkpoint, Model(parts.spec, slots, "layers"))


def test_parts_that_make_another_shape_are_refused() -> None:
    _, _, parts, checkpoint = fused(spec(ATTENTION))  # type: ignore[misc]
    slots = {**parts.slots, "blocks.0.feedforward.gate.weight": (Slot("blocks.0.gate.0"),) * 2}
    with pytest.raises(
        FileFormatError, match=r"its tensors together have shape \(64, 64\); the model needs \(96, 64\)"
    ):
        read(checkpoint, Model(parts.spec, slots, "layers"))


def test_what_is_added_is_added_to_each_part() -> None:
    checkpoint = InMemory({"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3.0)})
    reader = SlotReader(checkpoint, (Slot("a", plus=1.0), Slot("a", rows=(1, 2))))  # type: ignore[arg-type]
    np.testing.assert_array_equal(reader.values(), [[1, 2, 3], [4, 5, 6], [3, 4, 5]])
    np.testing.assert_array_equal(SlotReader(checkpoint, (Slot("b", rows=(1, 3)),)).values(), [1, 2])  # type: ignore[arg-type]


def test_a_vector_is_not_cut_inside_a_block() -> None:
    checkpoint = InMemory({"b": np.arange(64.0)})
    checkpoint.tensors["b"] = replace(checkpoint.tensors["b"], format="Q8_0")
    with pytest.raises(UnsupportedModel, match="tensor b is stored as Q8_0, whose blocks of 32 values cannot be cut"):
        SlotReader(checkpoint, (Slot("b", rows=(16, 48)),))  # type: ignore[arg-type]
    assert SlotReader(checkpoint, (Slot("b", rows=(32, 64)),)).shape == (32,)  # type: ignore[arg-type]


def test_shared_keys_are_read_as_they_are_written() -> None:
    """Even if the block that shares the keys has query weights of another format."""
    made = spec(ATTENTION, replace(ATTENTION, shared=0))
    quantised, plain = (lookup(form, "test").packed for form in ("Q8_0", "F16"))
    packed = {**dict.fromkeys(expected_shapes(made), quantised), "blocks.1.attention.q.weight": plain}
    plan = build_plan(made, packed)
    forms = [dict(op.kernel.parameters).get("kv_dtype") for op in plan.operations if op.kernel.name == "attention"]
    assert forms == ["bf16", "bf16"]
