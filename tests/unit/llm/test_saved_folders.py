"""Folders that sentence-transformers saves give its vectors and scores (tests/oracles/saved_oracle.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import SAVED

import pellucid
from pellucid.errors import InvalidRequest, UnsupportedModel
from pellucid.llm import LLM

CLOSE = 1e-5
RESULTS = {
    name: json.loads((folder / "results.json").read_text("utf-8"))
    for name, folder in SAVED.items()
    if (folder / "results.json").exists()
}
REFUSED = {
    "bert-residual": "use_residual",
    "bert-joined": "pooling cls and mean together",
    "bert-sparse-sum": "pooling_strategy",
    "bert-sparse-log": "activation_function",
    "bert-tokens-words": "skiplist_words",
    "bert-router": "module 'Router'",
    "bert-auto-encoder": "module 'SparseAutoEncoder'",
    "static": "module 'StaticEmbedding'",
}


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, Any]]:
    """A precise model and its golden results."""
    with pellucid.load(SAVED[request.param], precise=True, threads=1) as llm:
        assert llm.context == RESULTS[request.param]["context"]
        yield llm, RESULTS[request.param]


def folders(key: str) -> pytest.MarkDecorator:
    names = [name for name, found in RESULTS.items() if key in found]
    assert names
    return pytest.mark.parametrize("saved", names, indirect=True)


@folders("vectors")
def test_sentence_vectors(saved: tuple[LLM, Any]) -> None:
    llm, results = saved
    for prompt, texts, vectors in results["vectors"]:
        found = llm.embed(texts, prompt=prompt or "", truncate=True)
        np.testing.assert_allclose(found, vectors, rtol=0, atol=CLOSE)


@folders("tokens")
def test_vectors_of_tokens(saved: tuple[LLM, Any]) -> None:
    llm, results = saved
    for text, vectors in results["tokens"]:
        (found,) = llm.token_vectors([text], truncate=True)
        np.testing.assert_allclose(found, vectors, rtol=0, atol=CLOSE)


@folders("sparse")
def test_sparse_vectors(saved: tuple[LLM, Any]) -> None:
    llm, results = saved
    for text, weights in results["sparse"]:
        (found,) = llm.sparse([text], truncate=True)
        assert found == pytest.approx({int(token): one for token, one in weights.items()}, abs=CLOSE)


@folders("pairs")
def test_scores(saved: tuple[LLM, Any]) -> None:
    llm, results = saved
    for first, second, score in results["pairs"]:
        if isinstance(score, list):
            (found,) = llm.classify([(first, second)], truncate=True)
            assert list(found.scores) == pytest.approx(score, abs=CLOSE)
        else:
            (ranked,) = llm.rerank(first, [second], truncate=True)
            assert ranked.score == pytest.approx(score, abs=CLOSE)


def test_every_folder_has_results_or_is_refused() -> None:
    assert {*RESULTS} | {*REFUSED} == {*SAVED}


@pytest.mark.parametrize("name", REFUSED)
def test_other_modules_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=REFUSED[name]):
        pellucid.load(SAVED[name], threads=1)


def edited(name: str, folder: Path, file: str, **fields: Any) -> Path:
    """A copy of a folder with other fields in a file."""
    shutil.copytree(SAVED[name], folder)
    path = folder / file
    (stated := json.loads(path.read_text())).update(fields)
    path.write_text(json.dumps(stated))
    return folder


def as_transformers(folder: Path) -> Path:
    """The folder without the files of sentence-transformers."""
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("file", "fields", "context"),
    [
        ("tokenizer_config.json", {"model_max_length": 1e30}, 64),
        ("tokenizer_config.json", {"model_max_length": 10**30}, 64),
        ("tokenizer_config.json", {"model_max_length": None}, 64),
        ("tokenizer_config.json", {"model_max_length": 100}, 64),
        ("sentence_bert_config.json", {"max_seq_length": 16}, 16),
        ("sentence_bert_config.json", {"max_seq_length": 100}, 64),
        ("sentence_bert_config.json", {"max_seq_length": None}, 24),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 12}}}, 12),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 20}, "max_seq_length": 16}, 20),
    ],
)
def test_the_limit_of_texts(file: str, fields: dict[str, Any], context: int, tmp_path: Path) -> None:
    folder = edited("bert-mean", tmp_path / "m", file, **fields)
    with pellucid.load(folder, threads=1) as llm:
        assert llm.context == context
        assert llm.spec.max_context == 64


def test_a_plain_folder_of_transformers_has_the_limit_of_its_tokenizer(tmp_path: Path) -> None:
    folder = as_transformers(shutil.copytree(SAVED["bert-rank"], tmp_path / "m"))
    with pellucid.load(folder, threads=1) as llm:
        assert llm.context == 24


def test_a_truncated_vector_has_its_full_length_on_request() -> None:
    with pellucid.load(SAVED["bert-truncated"], threads=1) as llm:
        whole = llm.embed(["a text"], dimensions=32)
        assert whole.shape == (1, 32)
        assert np.array_equal(llm.embed(["a text"], dimensions=12), whole[:, :12])
        with pytest.raises(InvalidRequest, match="dimensions=13: the model's vectors can be cut to 12"):
            llm.embed(["a text"], dimensions=13)


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_documents_are_ranked_by_the_stated_similarity(kind: str, tmp_path: Path) -> None:
    file = "config_sentence_transformers.json"
    folder = edited("bert-max", tmp_path / "m", file, similarity_fn_name=kind)
    texts = ["the module", "a name", "one two three", "what is it?"]
    with pellucid.load(folder, threads=1) as llm:
        query, *others = llm.embed(texts).astype(np.float64)
        ranked = llm.rerank(texts[0], texts[1:])
    found = {
        "cosine": lambda a: a @ query / np.linalg.norm(a) / np.linalg.norm(query),
        "dot": lambda a: a @ query,
        "euclidean": lambda a: -np.linalg.norm(a - query),
        "manhattan": lambda a: -np.abs(a - query).sum(),
    }
    wanted = [float(found[kind](other)) for other in others]
    assert {one.index: one.score for one in ranked} == pytest.approx(dict(enumerate(wanted)), rel=1e-6)


@pytest.mark.parametrize(
    ("file", "fields", "word"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ("config_sentence_transformers.json", {"activation_fn": "mine.Sigmoid"}, "mine.Sigmoid"),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Hardtanh"}}, "Hardtanh"),
    ],
)
def test_other_activation_functions_are_refused(file: str, fields: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = edited("bert-rank", tmp_path / "m", file, **fields)
    if file == "config.json":
        as_transformers(folder)
    with pytest.raises(UnsupportedModel, match=word):
        pellucid.load(folder, threads=1)


@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_older_cross_encoders_have_the_activation_in_the_config(key: str, tmp_path: Path) -> None:
    path = "torch.nn.modules.linear.Identity"
    fields = {key: {"activation_fn": path} if key == "sentence_transformers" else path}
    folder = as_transformers(edited("bert-rank-identity", tmp_path / "m", "config.json", **fields))
    with pellucid.load(folder, precise=True, threads=1) as llm:
        for first, second, score in RESULTS["bert-rank-identity"]["pairs"]:
            assert llm.rerank(first, [second], truncate=True)[0].score == pytest.approx(score, abs=CLOSE)


def test_texts_in_a_chat_template_are_refused(tmp_path: Path) -> None:
    """sentence-transformers renders each text as a message if the settings have the modality "message"."""
    read = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = {"text": read, "message": {**read, "format": "flat"}}
    folder = edited("qwen3-last", tmp_path / "m", "sentence_bert_config.json", modality_config=modalities)
    with pytest.raises(UnsupportedModel, match=r"modality_config\.message"):
        pellucid.load(folder, threads=1)
