"""The lens of features: its table, its errors, and the texts where a feature is most active."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import dictionaries

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import Dictionary, features, top_examples

PROMPT = "to see that it rains in the east"
POINT = "blocks.1.residual"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("lens") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=512)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def test_the_table_has_all_activations(llm: LLM, tmp_path: Path) -> None:
    arrays = dictionaries.sae(tmp_path, "blocks.1.hook_resid_post")
    sae = Dictionary.open(tmp_path, llm)
    with llm.trace(POINT) as trace:
        llm.generate(PROMPT, max_new_tokens=1)
    sequence, x = trace.sequences[0], trace[POINT][0].astype(np.float64)
    table = features(llm, PROMPT, sae)
    again = features(llm, sequence, sae)
    assert table.activations.tobytes() == again.activations.tobytes()
    f = np.maximum((x - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"], 0)
    dense = np.zeros_like(f)
    dense[table.positions, table.features] = table.activations
    np.testing.assert_allclose(dense, f, atol=1e-5)
    assert (table.activations > 0).all()
    assert set(table.layers.tolist()) == {1}
    np.testing.assert_allclose(table.of(7), f[:, 7], atol=1e-5)
    best = np.argsort(-f[4])[:3].tolist()
    assert [one.feature for one in table.top(4, 3)] == best
    assert [(one.position, one.piece) for one in table.top(4, 1)] == [(4, sequence.pieces[4])]
    assert table.top(-1, 1) == table.top(len(x) - 1, 1)
    assert table.top(n=1)[0].activation == table.activations.max()
    error = ((f @ arrays["W_dec"] + arrays["b_dec"] - x) ** 2).sum(-1)
    for first in (0, 3):
        variance = ((x[first:] - x[first:].mean(0)) ** 2).sum()
        assert table.explained(first)[POINT] == pytest.approx(1 - error[first:].sum() / variance, rel=1e-4)
    assert "96 features" in repr(sae)
    assert "explained variance blocks.1.residual" in repr(table)
    assert "<table" in table._repr_html_()


def test_features_of_several_layers(llm: LLM, tmp_path: Path) -> None:
    arrays = dictionaries.cross_layer(tmp_path, 3)
    clt = Dictionary.open(tmp_path, llm)
    table = features(llm, PROMPT, clt)
    reads = [f"blocks.{layer}.attention.residual" for layer in range(3)]
    with llm.trace(*reads, "blocks.2.feedforward.output") as trace:
        llm.generate(PROMPT, max_new_tokens=1)
    made = arrays[2]["b_dec"].astype(np.float64)
    for layer, name in enumerate(reads):
        f = np.maximum(trace[name][0].astype(np.float64) @ arrays[layer]["W_enc"].T + arrays[layer]["b_enc"], 0)
        np.testing.assert_allclose(table.of(5, layer=layer), f[:, 5], atol=1e-5)
        assert all(one.layer == layer for one in table.top(3, 5, layer=layer))
        made = made + f @ arrays[layer]["W_dec"][:, 2 - layer]
    error = ((made - trace["blocks.2.feedforward.output"][0]) ** 2).sum(-1)
    np.testing.assert_allclose(table.errors["blocks.2.feedforward.output"], error, rtol=1e-4)
    assert (np.diff(table.positions) >= 0).all()


def test_examples_are_sorted_by_the_highest_activation(llm: LLM, tmp_path: Path) -> None:
    dictionaries.sae(tmp_path, "blocks.1.hook_resid_post")
    sae = Dictionary.open(tmp_path, llm)
    texts = [PROMPT, "rain", "it rains and rains", "the east of the sea", "x"]
    found = top_examples(llm, texts, sae, 7, n=3)
    tables = {text: features(llm, text, sae).of(7) for text in texts}
    best = sorted((float(one.max()) for one in tables.values()), reverse=True)
    assert [one.activation for one in found] == [value for value in best if value > 0][:3]
    for one in found:
        text = next(text for text, own in tables.items() if own.tobytes() == one.activations.tobytes())
        assert one.position == int(tables[text].argmax())
        assert f"[{one.pieces[one.position]}]" in one.context()
    later = top_examples(llm, texts, sae, 7, first=2)
    assert all(one.position >= 2 and one.activation == one.activations[2:].max() for one in later)
    with pytest.raises(InvalidRequest, match="feature=96"):
        top_examples(llm, texts, sae, 96)
    with pytest.raises(InvalidRequest, match="position=99"):
        features(llm, PROMPT, sae).top(99)


def test_arrays_are_the_dictionary_of_a_file(llm: LLM, tmp_path: Path) -> None:
    """The same activations, reconstructions and edits as the file with the same matrices."""
    arrays = dictionaries.sae(tmp_path, "blocks.1.hook_resid_post")
    opened = Dictionary.open(tmp_path, llm)
    made = Dictionary.from_arrays(
        llm,
        POINT,
        arrays["W_enc"].T,
        arrays["W_dec"],
        encoder_bias=arrays["b_enc"],
        decoder_bias=arrays["b_dec"],
        centred=True,
    )
    ours, theirs = (features(llm, PROMPT, one) for one in (made, opened))
    assert ours.activations.tobytes() == theirs.activations.tobytes()
    assert ours.explained() == theirs.explained()
    first = int(ours.features[0])
    texts = [
        llm.generate(PROMPT, edits=one.clamp(first, 9.0), temperature=0, max_new_tokens=6).ids for one in (made, opened)
    ]
    assert texts[0] == texts[1]
    D = arrays["W_dec"].shape[1]
    top = Dictionary.from_arrays(llm, POINT, arrays["W_enc"].T, arrays["W_dec"], k=3)
    assert np.bincount(features(llm, PROMPT, top).positions).max() == 3
    coder = Dictionary.from_arrays(
        llm, "blocks.1.feedforward.norm", arrays["W_enc"].T, arrays["W_dec"], writes="blocks.1.feedforward.output"
    ).coder()
    assert not coder.is_autoencoder
    for changes, said in (
        ({"encoder": arrays["W_enc"].T[:, 1:]}, "another model"),
        ({"decoder": arrays["W_dec"][1:]}, "decoder of shape"),
        ({"encoder": arrays["W_enc"]}, "give its transpose"),
        ({"encoder_bias": np.zeros(3)}, "encoder_bias of shape"),
        ({"decoder_bias": np.full(D, np.nan)}, "has numbers that are not finite"),
        ({"k": 0}, "k=0"),
        ({"reads": "blocks.9.residual"}, "no such values"),
    ):
        given = {"reads": POINT, "encoder": arrays["W_enc"].T, "decoder": arrays["W_dec"], **changes}
        with pytest.raises(InvalidRequest, match=said):
            Dictionary.from_arrays(llm, **given)


def test_a_dictionary_of_another_model_is_refused(llm: LLM, tmp_path: Path) -> None:
    dictionaries.sae(tmp_path, "blocks.1.hook_resid_post")
    sae, path = Dictionary.open(tmp_path, llm), tmp_path / "wider.gguf"
    random_model("llama", path, layers=3, width=96, heads=4, kv_heads=2, context=512)
    with pellucid.load(path, threads=2) as other:
        for call in (
            lambda: features(other, PROMPT, sae),
            lambda: top_examples(other, [PROMPT], sae, 3),
            lambda: other.generate(PROMPT, edits=sae.clamp(3, 5.0), max_new_tokens=1),
            lambda: other.generate(PROMPT, edits=sae.reconstruct(), max_new_tokens=1),
        ):
            with pytest.raises(InvalidRequest, match="reads vectors of 64 numbers, and these have 96") as refused:
                call()
            assert "\n" not in str(refused.value)


def test_the_highest_activations_are_exported(llm: LLM, tmp_path: Path) -> None:
    dictionaries.sae(tmp_path, "blocks.1.hook_resid_post")
    table = features(llm, PROMPT, Dictionary.open(tmp_path, llm))
    (part,) = table.labelled("activation")
    assert part.values.shape == (min(24, len(set(table.features.tolist()))), len(table.pieces))
    for label, row in zip(part.axes[0].labels, part.values):
        assert np.array_equal(row, table.of(int(label)))
    assert part.values.max() == table.activations.max()
    pytest.importorskip("matplotlib").use("Agg")
    axes = table.plot(first=2)
    assert next(tick.get_text() for tick in axes.get_xticklabels()) == table.pieces[2].replace(" ", "·")
    with pytest.raises(InvalidRequest, match="first="):
        table.plot(first=len(table.pieces))
