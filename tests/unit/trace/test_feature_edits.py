"""Edits of features: what they add, what they leave alone, and that neither chunks nor neighbours change a bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import dictionaries
from support.pages import lose_pages

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import Dictionary
from pellucid.trace.traced_model import ModelWeights

PROMPT = "to see that it rains in the east, in the east"
HOW: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}
POINT, OUT = "blocks.1.residual", "blocks.1.feedforward.output"
MIDDLE = "blocks.{}.attention.residual"
KINDS = ["standard", "jumprelu", "topk", "layer_norm", "transcoder", "clt"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("features") / "llama.gguf"
    random_model("llama", path, layers=3, width=64, heads=4, kv_heads=2, context=512)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def opened(kind: str, folder: Path, llm: LLM) -> tuple[Dictionary, Any]:
    """A dictionary of a kind, and its arrays."""
    if kind == "clt":
        return_value = dictionaries.cross_layer(folder, 3)
    elif kind == "transcoder":
        hooks = {"hook_name_out": "blocks.1.hook_mlp_out"}
        return_value = dictionaries.sae(folder, "blocks.1.mlp.hook_in", **hooks)
    else:
        config = {"architecture": kind} if kind != "layer_norm" else {"normalize_activations": kind}
        config |= {"k": 8} if kind == "topk" else {}
        return_value = dictionaries.sae(folder, "blocks.1.hook_resid_post", **config)
    return Dictionary.open(folder, llm), return_value


def chosen(made: Any) -> bytes:
    return bytes(made.logprobs.chosen.tobytes())


def values(llm: LLM, edits: Any = (), *points: str) -> list[np.ndarray]:
    with llm.trace(*points) as trace:
        llm.generate(PROMPT, edits=list(edits), max_new_tokens=1, temperature=0)
    return [trace[name][0] for name in points]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_feature_changes_no_bit(kind: str, llm: LLM, tmp_path: Path) -> None:
    dictionary, _ = opened(kind, tmp_path, llm)
    plain = llm.generate(PROMPT, **HOW)
    for layer in dictionary.coders:
        same = dictionary.scale(list(range(30)), 1.0, layer=layer)
        assert chosen(llm.generate(PROMPT, edits=same, **HOW)) == chosen(plain)
        other = dictionary.scale(list(range(30)), 3.0, layer=layer)
        assert chosen(llm.generate(PROMPT, edits=other, **HOW)) != chosen(plain)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "layer_norm", "transcoder"])
def test_a_clamped_feature_adds_its_change_times_its_vector(kind: str, llm: LLM, tmp_path: Path) -> None:
    dictionary, arrays = opened(kind, tmp_path, llm)
    reads, writes = ("blocks.1.feedforward.norm", OUT) if kind == "transcoder" else (POINT, POINT)
    (x,), (before,) = values(llm, (), reads), values(llm, (), writes)
    wide = x.astype(np.float64)
    scale = np.ones((len(x), 1))
    if kind == "layer_norm":
        scale = wide.std(-1, ddof=1, keepdims=True)
        wide = (wide - wide.mean(-1, keepdims=True)) / (scale + 1e-5)
    pre = (wide - (arrays["b_dec"] if kind != "transcoder" else 0)) @ arrays["W_enc"] + arrays["b_enc"]
    f = np.maximum(pre, 0)
    if kind == "jumprelu":
        f[pre <= 0.5] = 0
    if kind == "topk":
        f[pre < np.sort(pre, 1)[:, -8:-7]] = 0
    feature = int(np.abs((f > 0).mean(0) - 0.5).argmin())
    (after,) = values(llm, dictionary.clamp(feature, 4.0), writes)
    expected = before + (4 - f[:, feature, None]) * arrays["W_dec"][feature] * scale
    np.testing.assert_allclose(after, expected, atol=2e-4 if kind == "layer_norm" else 2e-5)
    quiet = f[:, feature] == 0
    assert 0 < quiet.sum() < len(quiet)
    (ablated,) = values(llm, dictionary.ablate(feature), writes)
    assert ablated[quiet].tobytes() == before[quiet].tobytes()
    assert ablated[~quiet].tobytes() != before[~quiet].tobytes()


def test_positions_of_an_edit(llm: LLM, tmp_path: Path) -> None:
    dictionary, _ = opened("standard", tmp_path, llm)
    (before,), (after,) = values(llm, (), POINT), values(llm, dictionary.clamp(5, 9.0, tokens="3,6:8"), POINT)
    changed = (before != after).any(-1)
    assert np.flatnonzero(changed).tolist() == [3, 6, 7]


def test_steering_is_a_plain_edit(llm: LLM, tmp_path: Path) -> None:
    dictionary, arrays = opened("standard", tmp_path, llm)
    (edit,) = dictionary.steer([3, 8], 2.5, tokens="2:")
    assert edit.function is None
    (before,), (after,) = values(llm, (), POINT), values(llm, [edit], POINT)
    expected = before[2:] + 2.5 * (arrays["W_dec"][3] + arrays["W_dec"][8])
    np.testing.assert_allclose(after[2:], expected, atol=1e-5)
    assert after[:2].tobytes() == before[:2].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_neither_chunks_nor_neighbours_nor_lost_pages_change_a_bit(kind: str, llm: LLM, tmp_path: Path) -> None:
    dictionary, _ = opened(kind, tmp_path, llm)
    layer = min(dictionary.coders)

    def edits() -> Any:
        return [
            *dictionary.scale(list(range(20)), 1.7, layer=layer),
            *dictionary.clamp([40, 41], 1.5, layer=layer, tokens="20:"),
            *(dictionary.reconstruct() if kind in ("topk", "clt") else ()),
        ]

    long, how = PROMPT * 6, {**HOW, "max_new_tokens": 30}
    alone = llm.generate(long, edits=edits(), **how)
    plain = [llm.generate(PROMPT + "!" * n, **how) for n in range(6)]
    requests = [
        llm.request(long if n == 3 else PROMPT + "!" * n, edits=edits() if n == 3 else [], **how) for n in range(6)
    ]
    for request in requests:
        request.start()
    for request in requests:
        request.wait()
    for number, request in enumerate(requests):
        assert chosen(request.results()[0]) == chosen(alone if number == 3 else plain[number])
    # A prompt that ends in generated tokens is the same text, read token by token.
    ids = [*llm.inputs.prompt(long), *alone.ids[:15]]
    again = llm.generate(ids, edits=edits(), **{**how, "max_new_tokens": 15})
    assert again.ids == alone.ids[15:]
    assert chosen(again) == chosen(alone)[-len(chosen(again)) :]
    request = llm.request(long, edits=edits(), **how)
    for number, _ in enumerate(request):
        if number == 5:
            lose_pages(llm)
    assert chosen(request.results()[0]) == chosen(alone)


def test_features_of_a_cross_layer_transcoder_write_to_later_layers(llm: LLM, tmp_path: Path) -> None:
    dictionary, arrays = opened("clt", tmp_path, llm)
    outputs = [f"blocks.{layer}.feedforward.output" for layer in range(3)]
    (x,) = values(llm, (), MIDDLE.format(1))
    f = np.maximum(x.astype(np.float64) @ arrays[1]["W_enc"][7] + arrays[1]["b_enc"][7], 0)
    before, edits = values(llm, (), *outputs), dictionary.clamp(7, 2.0, layer=1)
    assert [edit.where for edit in edits] == outputs[1:]
    first = values(llm, edits[:1], *outputs)
    assert first[0].tobytes() == before[0].tobytes()
    np.testing.assert_allclose(first[1], before[1] + np.outer(2 - f, arrays[1]["W_dec"][7, 0]), atol=2e-5)
    both = values(llm, edits, *outputs)
    np.testing.assert_allclose(both[2], first[2] + np.outer(2 - f, arrays[1]["W_dec"][7, 1]), atol=2e-5)


@pytest.mark.parametrize("kind", ["standard", "layer_norm", "transcoder", "clt"])
def test_reconstructions_replace_values(kind: str, llm: LLM, tmp_path: Path) -> None:
    dictionary, _ = opened(kind, tmp_path, llm)
    writes = [coder.writes[0].name for coder in dictionary.coders.values()]
    reads = [coder.reads.name for coder in dictionary.coders.values()]
    after = values(llm, dictionary.reconstruct(), *writes)
    x = values(llm, dictionary.reconstruct() if kind == "clt" else (), *reads)
    coders = list(dictionary.coders.values())
    for number, coder in enumerate(coders):
        sums = coder.summed(coder.active(x[number]), 0, len(x[0]))
        for other, output in dictionary.others(coder):
            sums += other.summed(other.active(x[coders.index(other)]), output, len(x[0]))
        assert after[number].tobytes() == coder.reconstruction(sums, x[number]).tobytes()


@pytest.mark.parametrize("kind", ["standard", "layer_norm", "transcoder", "clt"])
def test_without_the_error_the_change_is_that_of_the_reconstruction(kind: str, llm: LLM, tmp_path: Path) -> None:
    dictionary, _ = opened(kind, tmp_path, llm)
    layer = min(dictionary.coders)
    point = dictionary.coder(layer).writes[0].name
    plain, whole, changed = (
        values(llm, edits, point)[0]
        for edits in ((), dictionary.reconstruct(), dictionary.clamp(7, 2.0, layer=layer, error=False))
    )
    (kept,) = values(llm, dictionary.clamp(7, 2.0, layer=layer), point)
    np.testing.assert_allclose(changed - whole, kept - plain, atol=1e-4)
    assert np.abs(whole - plain).max() > 0.1


def test_a_sae_of_heads(llm: LLM, tmp_path: Path) -> None:
    whole = dictionaries.sae(tmp_path / "all", "blocks.1.attn.hook_z")
    one = dictionaries.sae(tmp_path / "one", "blocks.1.attn.hook_z", D=16, hook_head_index=2)
    name = "blocks.1.attention.heads"
    (before,) = values(llm, (), name)
    for arrays, folder, heads in ((whole, "all", slice(None)), (one, "one", slice(2, 3))):
        dictionary = Dictionary.open(tmp_path / folder, llm)
        (after,) = values(llm, dictionary.clamp(3, 5.0), name)
        x = before[:, heads].reshape(len(before), -1).astype(np.float64)
        f = np.maximum((x - arrays["b_dec"]) @ arrays["W_enc"][:, 3] + arrays["b_enc"][3], 0)
        change = np.outer(5 - f, arrays["W_dec"][3]).reshape(before[:, heads].shape)
        np.testing.assert_allclose(after[:, heads], before[:, heads] + change, atol=2e-5)
        assert heads == slice(None) or (after[:, :2] == before[:, :2]).all()
        (steered,) = values(llm, dictionary.steer(3, 5.0), name)
        vector = np.broadcast_to(arrays["W_dec"][3], (len(x), x.shape[1])).reshape(before[:, heads].shape)
        np.testing.assert_allclose(steered[:, heads], before[:, heads] + 5 * vector, atol=2e-5)
    dictionaries.sae(tmp_path / "far", "blocks.1.attn.hook_z", D=16, hook_head_index=4)
    with pytest.raises(InvalidRequest, match="has 4 heads"):
        Dictionary.open(tmp_path / "far", llm)


def test_values_before_the_weights_of_a_norm(tmp_path: Path) -> None:
    random_model("gemma2", tmp_path / "model", layers=2, width=64)
    llm = pellucid.load(tmp_path / "model", threads=1, precise=True)
    try:
        arrays = dictionaries.sae(
            tmp_path / "sae", "blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out"
        )
        coder = Dictionary.open(tmp_path / "sae", llm).coder()
        assert coder.writes[0].name == "blocks.1.feedforward.post_norm"
        with llm.trace("blocks.1.attention.residual", "blocks.1.feedforward.norm") as trace:
            llm.generate(PROMPT, max_new_tokens=1)
        x = trace["blocks.1.attention.residual"][0].astype(np.float64)
        normal = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        assert np.abs(ModelWeights(llm.checkpoint, llm.model).values("blocks.1.feedforward.norm.weight") - 1).max() > 0
        expected = np.maximum(normal @ arrays["W_enc"] + arrays["b_enc"], 0)
        np.testing.assert_allclose(coder.encode(trace["blocks.1.feedforward.norm"][0]), expected, atol=1e-3)
    finally:
        llm.close()


def test_refusals_are_one_line(llm: LLM, tmp_path: Path) -> None:
    dictionary, _ = opened("standard", tmp_path / "a", llm)
    several, _ = opened("clt", tmp_path / "b", llm)
    for make, said in [
        (lambda: dictionary.clamp(96, 1.0), "feature=96: must be a whole number from 0 to 95"),
        (lambda: dictionary.clamp(-1, 1.0), "feature=-1"),
        (lambda: dictionary.clamp(True, 1.0), "feature=True"),
        (lambda: dictionary.clamp([1, 1], 1.0), "different features"),
        (lambda: dictionary.clamp([], 1.0), "1 to 1,024 different features"),
        (lambda: dictionary.clamp(1, float("nan")), "value=nan"),
        (lambda: dictionary.scale(1, 1e40), "factor=1e"),
        (lambda: dictionary.clamp(1, 1.0, layer=2), "layer=2: must be a layer of the dictionary: '1'"),
        (lambda: several.clamp(1, 1.0), "layer=None: must be a layer of the dictionary: '0, 1, 2'"),
        (lambda: several.reconstruct(layer=1), "features write to several layers"),
        (lambda: llm.generate(PROMPT, edits=dictionary.clamp(1, 1.0, tokens="900")), "begins at position 900"),
    ]:
        with pytest.raises(InvalidRequest, match=said) as error:
            make()
        assert "\n" not in str(error.value)
