"""The logit lens of masked language models, and the label lens of classifiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Command
from support.decoders import arrays_of, edited

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, attribute, label_lens, logit_lens, relevance

TEXT = "one _ and another _ here"
SPARE = {"num_labels": 3}


def made(folder: Path, family: str, head: str, **metadata: Any) -> Path:
    """A random model that ends with ``head``. Its tokenizer has a token for each byte; "_" is the mask."""
    names = {"architectures": [f"XFor{head}"], **metadata}
    path = random_model(family, folder / f"{family}-{head}", kind="safetensors", metadata=names)
    (path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "_"}))
    return path


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "eurobert", "distilbert"])
@pytest.mark.parametrize("precise", [True, False])
def test_the_last_layer_of_the_lens_fills_the_masks(family: str, precise: bool, tmp_path: Path) -> None:
    with pellucid.load(made(tmp_path, family, "MaskedLM"), threads=2, precise=precise) as llm:
        filled = llm.fill(TEXT, 3)
        lens = logit_lens(llm, TEXT, top=3, tokens=["a"])
        assert lens.pieces == ["_", "_"]
        assert len(lens.layers) == len(llm.spec.blocks) + 1
        for position, tokens in enumerate(filled):
            assert lens.ids[-1, position].tolist() == [one.token for one in tokens]
            wanted = [one.probability for one in tokens]
            assert lens.probabilities[-1, position].tolist() == pytest.approx(wanted, rel=1e-12)
        assert not np.array_equal(lens.probabilities[0], lens.probabilities[-1])
        with llm.trace("**") as trace:
            llm.fill(TEXT)
        again = logit_lens(llm, trace.sequences[0], top=3, tokens=["a"])
        np.testing.assert_array_equal(again.probabilities, lens.probabilities)
        np.testing.assert_array_equal(again.ranks, lens.ranks)
        every = logit_lens(llm, TEXT, top=1, positions=range(len(trace.sequences[0])))
        np.testing.assert_array_equal(every.ids[:, trace.sequences[0].pieces.index("_")], lens.ids[:, 0, :1])
        assert "token at each position" in lens._repr_html_()
        assert " at '_'" in repr(lens)


CLASSIFIERS = [
    ("bert", {}, "cls"),
    ("distilbert", {}, "cls"),
    ("modernbert", {"classifier_pooling": "cls"}, "cls"),
    ("modernbert", {"classifier_pooling": "mean"}, "mean"),
    ("eurobert", {"clf_pooling": "late"}, "mean"),
    ("qwen3", {}, "last"),
]


@pytest.mark.parametrize(("family", "metadata", "pooling"), CLASSIFIERS)
def test_the_last_layer_of_the_lens_has_the_scores_of_the_labels(
    family: str, metadata: dict[str, Any], pooling: str, tmp_path: Path
) -> None:
    if pooling == "last":  # a decoder with a matrix of scores
        base = random_model(family, tmp_path / "base", kind="safetensors")
        tensors = arrays_of(base)
        tensors["score.weight"] = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
        path = edited(
            tmp_path / "scored", base, tensors={"model.safetensors": tensors}, num_labels=3, pad_token_id=0,
            architectures=["XForSequenceClassification"],
        )  # fmt: skip
    else:
        path = made(tmp_path, family, "SequenceClassification", num_labels=3, **metadata)
    with pellucid.load(path, threads=2) as llm:
        assert llm.spec.pooling is not None
        assert llm.spec.pooling.kind == pooling
        for text in ("a text of several words", ("a question", "an answer")):
            (found,) = llm.classify([text])
            lens = label_lens(llm, text)
            assert lens.labels == found.labels
            assert tuple(lens.logits[-1].tolist()) == found.logits
            assert tuple(lens.scores[-1].tolist()) == found.scores
            assert lens.ranked(-1) == found.ranked
            assert lens.logits.shape == (len(llm.spec.blocks) + 1, 3)
            assert not np.array_equal(lens.logits[0], lens.logits[-1])
        with llm.trace("**") as trace:
            llm.classify(["a text of several words", "another"])
        again = label_lens(llm, trace.sequences[0])
        np.testing.assert_array_equal(again.logits, label_lens(llm, "a text of several words").logits)
        assert "the label lens" in again._repr_html_()
        assert found.label in repr(lens)


def test_the_lens_of_a_layer_is_the_model_without_later_layers(tmp_path: Path) -> None:
    """Without the outputs of the last block, the stream of a model with norms before its parts stays as it was."""
    path = made(tmp_path, "modernbert", "SequenceClassification", **SPARE)
    last = f"blocks.{-1}"
    with pellucid.load(path, threads=2) as llm:
        lens = label_lens(llm, "a text")
        edits = [ablate(f"{last}.attention.output"), ablate(f"{last}.feedforward.output")]
        (without,) = llm.classify(["a text"], edits=edits)
        np.testing.assert_allclose(lens.logits[-2], without.logits, rtol=0, atol=1e-6)


def test_vectors_of_sequences_are_pooled(tmp_path: Path) -> None:
    with pellucid.load(random_model("bert", tmp_path / "bert", kind="safetensors"), threads=2) as llm:
        with llm.trace("blocks.-1.residual") as trace:
            vectors = llm.embed(["one text", "and another"])
        for number, one in enumerate(trace.sequences):
            rows = one["blocks.-1.residual"]
            np.testing.assert_array_equal(llm.project(rows, len(rows))[0], vectors[number])
            twice = llm.project(np.concatenate([rows, rows]), len(rows))
            np.testing.assert_array_equal(twice, np.stack([vectors[number]] * 2))
        for rows in (0, 3, 1000):
            with pytest.raises(InvalidRequest, match=f"rows={rows:,}: must divide the 4 vectors"):
                llm.project(np.zeros((4, llm.spec.embedding.width), np.float32), rows)


def test_points_of_a_generated_token_belong_to_models_that_generate(tmp_path: Path) -> None:
    with pellucid.load(made(tmp_path, "bert", "MaskedLM"), threads=2) as llm:
        assert "project.logits" in llm.points
        assert not any(name.startswith(("sample.", "detokenize.")) for name in llm.points)


REFUSED: dict[str, tuple[str, Callable[[LLM], object], str]] = {
    "no mask": ("MaskedLM", lambda llm: logit_lens(llm, "a text"), "the text has no mask: write _ where"),
    "a logit lens of labels": (
        "SequenceClassification",
        lambda llm: logit_lens(llm, TEXT),
        "for a classifier use label_lens",
    ),
    "a label lens of masks": ("MaskedLM", lambda llm: label_lens(llm, TEXT), "use logit_lens"),
    "a label lens of tags": ("TokenClassification", lambda llm: label_lens(llm, TEXT), "use logit_lens"),
    "two texts": (
        "SequenceClassification",
        lambda llm: label_lens(llm, ["one", "another"]),
        "a lens analyses one prompt",
    ),
    "a trace without the stream": ("SequenceClassification", lambda llm: label_lens(llm, _traced(llm)), "not in"),
    "attribution": ("MaskedLM", lambda llm: attribute(llm, TEXT), "no logits"),
    "relevance": ("SequenceClassification", lambda llm: relevance(llm, TEXT), "no logits"),
}


def _traced(llm: LLM) -> Any:
    with llm.trace("embed") as trace:
        llm.classify([TEXT])
    return trace.sequences[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_apply_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    head, function, message = REFUSED[name]
    with pellucid.load(made(tmp_path, "bert", head), threads=1) as llm:
        with pytest.raises(InvalidRequest, match=message) as error:
            function(llm)
        assert "\n" not in str(error.value)


def test_explain_shows_what_each_layer_says(command: Command, tmp_path: Path) -> None:
    masked = str(made(tmp_path, "bert", "MaskedLM"))
    shown = command("explain", masked, TEXT, "--top", "2")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.count("the token at mask") == 2
    assert "blocks.0" in shown.out
    found = json.loads(command("explain", masked, TEXT, "--json").out)
    assert found["pieces"] == ["_", "_"]
    labels = str(made(tmp_path, "bert", "SequenceClassification", **SPARE))
    shown = command("explain", labels, "a text")
    assert (shown.code, shown.err) == (0, "")
    assert "LABEL_2" in shown.out
    assert json.loads(command("explain", labels, "a text", "--json").out)["labels"][0] == "LABEL_0"


@pytest.mark.parametrize(
    ("head", "arguments", "problem"),
    [
        ("MaskedLM", ["no mask"], "write _ where a token is to be filled in"),
        ("MaskedLM", [TEXT, "--html", "page.html"], "--html page.html"),
        ("MaskedLM", [TEXT, "--top", "0"], "top=0"),
        ("SequenceClassification", [TEXT, "--temperature", "1"], "--temperature"),
        ("TokenClassification", [TEXT], "makes labels of tokens"),
    ],
)
def test_what_explain_refuses(command: Command, head: str, arguments: list[str], problem: str, tmp_path: Path) -> None:
    refused = command("explain", str(made(tmp_path, "bert", head)), *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert problem in refused.err
    assert len(refused.err.strip().splitlines()) == 1
