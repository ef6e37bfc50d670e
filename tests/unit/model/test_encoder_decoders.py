"""Each family of encoder-decoders on tiny random models, against transformers (oracles/sources_oracle.py)."""

from __future__ import annotations

import numpy as np
import pytest
from support.reference import Reference
from support.tiny import SOURCES, model_runner, opened

from pellucid.model.shapes import ENCODER
from pellucid.model.weight_map import Model
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(SOURCES[name] / "expected.npz") as file:
        return {key: file[key] for key in ("source_ids", "decoder_ids", "hidden", "logits")}


@pytest.mark.parametrize("name", SOURCES)
def test_spec_means_what_transformers_computes(name: str) -> None:
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    with opened(SOURCES[name]) as (checkpoint, model):
        assert model.spec.encoder
        assert model.spec.start == (ids[0],)
        own = {
            slot.removeprefix(ENCODER): one for slot, one in model.slots.items() if slot.startswith(ENCODER)
        }
        hidden = Reference(checkpoint, Model(model.spec.encoder, own, "layers")).rows(source)
        logits = Reference(checkpoint, model, source=source).logits(ids)
    for got, expected in ((hidden, wanted["hidden"]), (logits, wanted["logits"])):
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=max(5e-5, 1e-5 * float(np.abs(expected).max()))
        )


@pytest.mark.parametrize("name", SOURCES)
def test_logits_of_every_position(name: str) -> None:
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    table = BlockTable()
    with model_runner(SOURCES[name], threads=2) as runner:
        runner.forward([Chunk(table, source, 0, encodes=True)])
        got = runner.forward([Chunk(BlockTable(), ids, len(ids), table)])
        assert runner.encoder is not None
        one = BlockTable()
        by_one = [runner.forward([Chunk(one, [token], 1, table)])[0] for token in ids]
    scale = float(np.abs(wanted["logits"]).max())
    np.testing.assert_allclose(got, wanted["logits"], rtol=0, atol=1e-4 * scale)
    np.testing.assert_array_equal(np.stack(by_one), got)


@pytest.mark.parametrize("name", SOURCES)
def test_default_precision_keeps_the_direction_of_the_logits(name: str) -> None:
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    table = BlockTable()
    with model_runner(SOURCES[name], activation_bits=8) as runner:
        runner.forward([Chunk(table, source, 0, encodes=True)])
        got = runner.forward([Chunk(BlockTable(), ids, len(ids), table)])
    cosine = (
        (got * wanted["logits"]).sum(-1)
        / np.linalg.norm(got, axis=-1)
        / np.linalg.norm(wanted["logits"], axis=-1)
    )
    assert cosine.min() > 0.999
