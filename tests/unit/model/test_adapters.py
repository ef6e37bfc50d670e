"""Adapters of Jina Embeddings v3: a merged adapter gives the bits of a file with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapters import INSTRUCTIONS, NAMES, write_merged, write_published
from support.model_files import safetensors
from support.tiny import ENCODERS, TINY

import pellucid
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.model.read import read_model
from pellucid.trace.traced_model import ModelWeights
from pellucid.weights.open import open_checkpoint

TEXTS = ["the module", "a statement of the exception is with us", "the end."]
QUERY, PASSAGE, MATCHING = NAMES[0], NAMES[1], NAMES[4]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("jina") / "jina")


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_without_an_adapter_the_base_model_runs_with_a_warning(prefix: str, tmp_path: Path) -> None:
    path = write_published(tmp_path / "m", prefix)
    with pytest.warns(UserWarning, match=rf"option adapter \({', '.join(NAMES)}\)"):
        llm = pellucid.load(path, threads=1)
    with llm, pellucid.load(write_merged(tmp_path / "base"), threads=1) as base:
        assert (llm.spec.adapter, llm.spec.adapters) == ("", tuple(NAMES))
        np.testing.assert_array_equal(llm.embed(TEXTS), base.embed(TEXTS))


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_merged_into_all_weights(name: str, precise: bool, published: Path, tmp_path: Path) -> None:
    merged = write_merged(tmp_path / "merged", name)
    with (
        pellucid.load(published, adapter=name, precise=precise, threads=1) as llm,
        pellucid.load(merged, precise=precise, threads=1) as other,
    ):
        wanted = other.embed([INSTRUCTIONS[name] + text for text in TEXTS])
        for prompt in ("", name):
            np.testing.assert_array_equal(llm.embed(TEXTS, prompt=prompt), wanted)
        np.testing.assert_array_equal(llm.embed(TEXTS[1:2]), wanted[1:2])  # in any batch
        weights, theirs = (ModelWeights(one.checkpoint, one.model) for one in (llm, other))
        for slot in ("embed.weight", "embed.types.weight", "blocks.1.attention.k.weight"):
            np.testing.assert_array_equal(weights.values(slot), theirs.values(slot))
        np.testing.assert_array_equal(weights.rows("embed.weight", 7, 9), theirs.values("embed.weight")[7:9])


def test_a_file_of_float32_gives_the_same_bits(published: Path, tmp_path: Path) -> None:
    floats = write_published(tmp_path / "floats", form="F32")
    with (
        pellucid.load(published, adapter=QUERY, threads=1) as llm,
        pellucid.load(floats, adapter=QUERY, threads=1) as other,
    ):
        np.testing.assert_array_equal(llm.embed(TEXTS), other.embed(TEXTS))


def test_the_threads_do_not_change_the_bits(published: Path) -> None:
    with (
        pellucid.load(published, adapter=PASSAGE, threads=1) as one,
        pellucid.load(published, adapter=PASSAGE, threads=2) as two,
    ):
        np.testing.assert_array_equal(one.embed(TEXTS), two.embed(TEXTS))


def test_prompts_of_other_adapters_are_refused(published: Path) -> None:
    with pellucid.load(published, adapter=QUERY, threads=1) as llm:
        with pytest.raises(InvalidRequest, match=r"is loaded with the adapter retrieval\.query: load it with adapter="):
            llm.embed(TEXTS, prompt=PASSAGE)
        with pytest.raises(InvalidRequest, match=r"prompt='retrieval\.passage'"):
            llm.rerank(TEXTS[0], TEXTS)  # a query and documents need two adapters
    with pytest.warns(UserWarning, match="without an adapter"):
        base = pellucid.load(published, threads=1)
    with base, pytest.raises(InvalidRequest, match=r"with no adapter: load it with adapter=retrieval\.query"):
        base.embed(TEXTS, prompt=QUERY)


def test_an_adapter_for_both_sides_ranks_documents(published: Path) -> None:
    with pellucid.load(published, adapter=MATCHING, threads=1) as llm:
        vectors = llm.embed(TEXTS).astype(np.float64)
        ranked = llm.rerank(TEXTS[0], TEXTS)
        assert ranked[0].index == 0
        assert {one.index: one.score for one in ranked} == pytest.approx(dict(enumerate(vectors @ vectors[0])))


def test_an_unknown_adapter_is_refused(published: Path) -> None:
    for path, known in (
        (published, ", ".join(NAMES)),
        (ENCODERS["jina_embeddings_v3"], "none"),
        (TINY["llama"], "none"),
    ):
        checkpoint = open_checkpoint(path)
        with pytest.raises(PellucidError, match=rf"adapter='nothing': the file has no .*\(known: {known}\)"):
            read_model(checkpoint, adapter="nothing")
        checkpoint.close()
    for wrong in (3, ["a"]):
        with pytest.raises(InvalidRequest, match="adapter="):
            pellucid.load(published, adapter=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_adaptations": None}, "lora_adaptations: is None; it must be a list of names"),
        ({"lora_adaptations": [QUERY, 3]}, "it must be a list of names"),
        ({"lora_adaptations": [QUERY]}, r"lora_A.*has shape \(5, 301, 3\); the adapters need \(1, 301, 3\)"),
        ({"lora_rank": 4}, r"tensor has shape .*; the adapters need \(5, "),
        ({"lora_alpha": 0}, "lora_alpha: is 0; it must be a number above 0"),
        ({"task_instructions": {QUERY: 3}}, "task_instructions.retrieval.query: is 3; it must be a string"),
        ({"task_instructions": "none"}, "task_instructions: is 'none'; it must be a table"),
    ],
)
def test_damaged_adapters_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_published(tmp_path / "m", **config))
    with pytest.raises(PellucidError, match=message):
        read_model(checkpoint, adapter=QUERY)
    checkpoint.close()


def test_a_missing_tensor_of_an_adapter_is_named(tmp_path: Path) -> None:
    path = write_published(tmp_path / "m")
    checkpoint = open_checkpoint(path)
    tensors = {
        tensor.name: (tensor.format, tensor.shape, checkpoint.data(tensor.name).tobytes())
        for tensor in checkpoint.tensors.values()
        if not tensor.name.endswith("layers.2.mlp.fc1.parametrizations.weight.0.lora_A")
    }
    checkpoint.close()
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    checkpoint = open_checkpoint(path)
    with pytest.raises(PellucidError, match=r"fc1.*lora_A: tensor missing; the adapters need it \(5, 3, 64\)"):
        read_model(checkpoint, adapter=QUERY)
    checkpoint.close()


def test_the_files_of_sentence_transformers_are_read_too(tmp_path: Path) -> None:
    """The published ``modules.json`` names a class of its own for the body."""
    path = write_published(tmp_path / "m")
    kinds = ("custom_st.Transformer", "sentence_transformers.models.Pooling", "sentence_transformers.models.Normalize")
    modules = [{"idx": at, "name": kind, "path": "", "type": kind} for at, kind in enumerate(kinds)]
    modules[0]["kwargs"] = ["task"]
    (path / "modules.json").write_text(json.dumps(modules))
    prompts = {**INSTRUCTIONS, "other": "another prompt: "}
    (path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    checkpoint = open_checkpoint(path)
    spec = read_model(checkpoint, adapter=PASSAGE).spec
    checkpoint.close()
    assert (spec.task, spec.adapter) == ("embed", PASSAGE)
    assert dict(spec.prompts) == {**prompts, "": INSTRUCTIONS[PASSAGE]}
