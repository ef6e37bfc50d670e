"""Encoders multiply 8-bit weights, and the weights of the file with ``precise``. Other models do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny import ENCODERS, TINY, opened

import pellucid
from pellucid.model.read import convert_encoder
from pellucid.model.slot_reader import SlotReader
from pellucid.testing import random_model
from pellucid.weights.pack import to_bf16, to_q8_0

TEXTS = ["the quick brown fox", "a", "of the people, by the people " * 4]


def test_the_matrices_of_the_blocks_are_quantized() -> None:
    with opened(TINY["bert"]) as (checkpoint, model):
        made = convert_encoder(checkpoint, model)
        changed = {slot for slot in made.slots if made.sources(slot) != model.sources(slot)}
        assert "blocks.0.feedforward.down.weight" in changed
        assert all(slot.startswith("blocks.") and slot.endswith(".weight") for slot in changed)
        # Queries, keys, values, output, up and down, and the factors of the inputs of attention and feed-forward.
        assert len(changed) == 8 * len(model.spec.blocks)


def test_encoders_with_norms_before_their_parts_have_bfloat16_pairs() -> None:
    with opened(ENCODERS["modernbert"]) as (checkpoint, model):
        made = convert_encoder(checkpoint, model)
        assert made.spec == model.spec
        slot = "blocks.0.feedforward.up.weight"
        floats, reader = (SlotReader(checkpoint, one.sources(slot)) for one in (model, made))
        out = np.empty(np.prod(reader.blocks_shape), np.uint8)
        reader.read(0, out)
        assert np.array_equal(out, to_bf16(floats.values()).reshape(-1))


def test_models_that_generate_stay_as_they_are() -> None:
    with opened(TINY["llama"]) as (checkpoint, model):
        assert convert_encoder(checkpoint, model) is model


def test_a_slot_is_quantized_piece_by_piece() -> None:
    with opened(TINY["bert"]) as (checkpoint, model):
        slot = "blocks.1.feedforward.down.weight"
        floats = SlotReader(checkpoint, model.sources(slot)).values()
        reader = SlotReader(checkpoint, convert_encoder(checkpoint, model).sources(slot))
        whole = to_q8_0(floats).reshape(-1)
        assert reader.blocks_shape == (len(floats), floats.shape[1] // 32, 34)
        row = whole.size // len(floats)
        for start, count in ((0, whole.size), (0, row), (row, 3 * row), (5, 2 * row + 7), (whole.size - 3, 3)):
            out = np.empty(count, np.uint8)
            reader.read(start, out)
            assert np.array_equal(out, whole[start : start + count])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "bert"
    return random_model("bert", path, kind="safetensors", layers=2, width=64, heads=2)


@pytest.mark.parametrize(("precise", "kernel"), [(False, "matmul_int8"), (True, "matmul_float")])
def test_the_plan_shows_the_weights(bert: Path, precise: bool, kernel: str) -> None:
    with pellucid.load(bert, precise=precise) as llm:
        ops = [op for op in llm.plan.operations if op.stage.startswith("blocks.") and op.multiply_adds]
        assert {op.kernel.name for op in ops} == {kernel}


def test_vectors_are_near_the_vectors_of_the_file(bert: Path) -> None:
    with pellucid.load(bert) as llm, pellucid.load(bert, precise=True) as exact:
        got, want = llm.embed(TEXTS), exact.embed(TEXTS)
    cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert not np.array_equal(got, want)
    assert cosine.min() > 0.999
