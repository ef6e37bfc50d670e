"""The HTTP routes of encoders: their numbers are the numbers of ``llm.*``, in the forms of all APIs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adapters import write_published
from support.encoder_models import NAMES, PROMPTS, encoder_models
from support.served import Served, serving

import pellucid
from pellucid.encoders.ranking import similarity_of_rows
from pellucid.llm import LLM
from pellucid.serve.api import known_apis
from pellucid.serve.batch import Batch

TEXTS = ["to see", "a b c", "x"]
LONG = "a b " * 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_models(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, names=NAMES) as made:
        yield made


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[dict[str, LLM]]:
    made = {name: pellucid.load(folder / name, threads=1) for name in NAMES}
    yield made
    for one in made.values():
        one.close()


def post(served: Served, path: str, **body: Any) -> Any:
    answer = httpx.post(served.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(served: Served, path: str, **body: Any) -> str:
    """The message of a refused request."""
    answer = httpx.post(served.url + path, content=json.dumps(body).encode(), timeout=60)
    assert answer.status_code == 400, answer.text
    said = answer.json()
    error = said.get("error", said.get("message"))
    message = error if isinstance(error, str) else error["message"]
    assert "\n" not in message
    return str(message)


def numbers(values: Any) -> list[Any]:
    """An array as JSON has it."""
    return list(np.asarray(values, np.float32).tolist())


# OpenAI


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, ""),
        ({"prompt_name": "query"}, "query"),
        ({"input_type": "query"}, "query"),
        ({"input_type": "search_document"}, "document"),
        ({"input_type": "passage"}, "document"),
        ({"input_type": "classification"}, "classification"),
        ({"task": "retrieval.query"}, "query"),
        ({"task": "retrieval.passage"}, "retrieval.passage"),  # the model's own name goes first
        ({"task": "text-matching"}, ""),  # the model has no prompt for it
    ],
)
def test_embeddings_have_a_prompt(served: Served, models: dict[str, LLM], fields: dict[str, Any], prompt: str) -> None:
    made = post(served, "/v1/embeddings", model="prompted", input=TEXTS, **fields)
    wanted = models["prompted"].embed(TEXTS, prompt=prompt)
    assert [one["embedding"] for one in made["data"]] == numbers(wanted)
    before = PROMPTS.get(prompt, "")
    tokens = sum(len(models["prompted"].tokenizer.encode(before + one)) for one in TEXTS)
    assert made["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_a_server_has_one_adapter(tmp_path: Path) -> None:
    """A request for the texts of another adapter is refused, in the words of each API."""
    path = write_published(tmp_path / "jina")
    with (
        pellucid.load(path, threads=1, adapter="retrieval.query") as llm,
        serving(tmp_path, load=lambda name: llm, names=["jina"]) as served,
    ):
        wanted = numbers(llm.embed(TEXTS))
        for fields in ({}, {"task": "retrieval.query"}, {"input_type": "query"}, {"prompt_name": "retrieval.query"}):
            made = post(served, "/v1/embeddings", model="jina", input=TEXTS, **fields)
            assert [one["embedding"] for one in made["data"]] == wanted
        for name in ("task", "input_type", "prompt_name"):
            fields = {name: "document" if name == "input_type" else "retrieval.passage"}
            said = refusal(served, "/v1/embeddings", model="jina", input=TEXTS, **fields)
            assert "is loaded with the adapter retrieval.query: load it with adapter=retrieval.passage" in said
        assert "adapter=text-matching" in refusal(
            served, "/v1/embeddings", model="jina", input=TEXTS, task="text-matching"
        )


def test_embeddings_in_other_formats(served: Served, models: dict[str, LLM]) -> None:
    vectors = models["prompted"].embed(TEXTS).astype(np.float64)

    def made(form: str) -> np.ndarray[Any, Any]:
        answer = post(served, "/v1/embeddings", model="prompted", input=TEXTS, embedding_type=form)
        return np.array([one["embedding"] for one in answer["data"]])

    signs = made("ubinary").astype(np.uint8)
    assert np.array_equal(np.unpackbits(signs, axis=1), vectors > 0)
    assert np.array_equal(made("binary"), signs.astype(int) - 128)
    steps = made("int8")
    assert np.abs(steps).max(axis=1).tolist() == [127] * 3
    lengths = np.linalg.norm(steps, axis=1)
    assert ((steps * vectors).sum(1) / lengths > 0.9999).all()
    assert np.array_equal(made("uint8"), steps + 128)
    encoded = post(served, "/v1/embeddings", model="prompted", input=TEXTS, embedding_type="base64")
    first = np.frombuffer(base64.b64decode(encoded["data"][0]["embedding"]), "<f4")
    assert numbers(first) == numbers(vectors[0])


def test_embeddings_of_ids_objects_and_long_texts(served: Served, models: dict[str, LLM]) -> None:
    llm = models["prompted"]
    ids = llm.tokenizer.encode("to see")
    made = post(served, "/v1/embeddings", model="prompted", input=[{"text": "to see"}, "to see", ids])
    assert [one["embedding"] for one in made["data"]] == [numbers(llm.embed(["to see"])[0])] * 3
    short = post(served, "/v1/embeddings", model="prompted", input="to see", dimensions=16)
    assert short["data"][0]["embedding"] == numbers(llm.embed(["to see"], dimensions=16)[0])
    whole = post(served, "/v1/embeddings", model="prompted", input=LONG, truncate=True)
    assert whole["data"][0]["embedding"] == numbers(llm.embed([LONG], truncate=True)[0])
    assert whole["usage"]["prompt_tokens"] == llm.context
    assert post(served, "/v1/embeddings", model="prompted", input=LONG, truncate_prompt_tokens=-1) == whole
    cut = post(served, "/v1/embeddings", model="prompted", input=[LONG, ids], truncate_prompt_tokens=5)
    assert cut["usage"]["prompt_tokens"] == 10
    assert cut["data"][1]["embedding"] == post(
        served, "/v1/embeddings", model="prompted", input=[ids[:5]]
    )["data"][0]["embedding"]  # fmt: skip


def test_vectors_are_scaled_on_request(served: Served, models: dict[str, LLM]) -> None:
    own = models["plain"].embed(["to see"])[0]
    assert abs(np.linalg.norm(own) - 1) > 0.01

    def made(**fields: Any) -> list[float]:
        answer = post(served, "/v1/embeddings", model="plain", input="to see", **fields)
        return list(answer["data"][0]["embedding"])

    assert made() == made(normalized=False) == numbers(own)
    assert made(normalized=True) == pytest.approx(own / np.linalg.norm(own), abs=1e-7)
    assert np.linalg.norm(made(normalized=True)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("sparse", "makes sparse vectors, not sentence vectors: use POST /embed_sparse"),
        ("tokens", "makes a vector for each token, not sentence vectors: use POST /embed_all"),
        ("labels", "makes scores of labels, not sentence vectors: use POST /classify"),
        ("tagger", "use POST /pooling"),
        ("filler", "use pellucid fill"),
        ("text", "makes text, not sentence vectors: use POST /v1/completions, or load minilm, or serve this model"),
    ],
)  # fmt: skip
def test_other_models_are_refused(served: Served, model: str, route: str) -> None:
    for path, fields in (
        ("/v1/embeddings", {"input": "a"}),
        ("/api/embed", {"input": "a"}),
        ("/api/embeddings", {"prompt": "a"}),
        ("/embed", {"inputs": "a"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/v1/embed", {"texts": ["a"]}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query"}),
    ):
        assert route in refusal(served, path, model=model, **fields)


def test_tasks_that_a_model_does_not_have(served: Served) -> None:
    for path, fields in (
        ("/classify", {"input": "a"}),
        ("/predict", {"inputs": "a"}),
        ("/score", {"text_1": "a", "text_2": "b"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/rerank", {"query": "a", "texts": ["b"]}),
    ):
        message = refusal(served, path, model="text", **fields)
        assert "makes text, not scores of labels: use POST /v1/completions" in message
    assert "makes text, not" in refusal(served, "/pooling", model="text", input="a")
    assert "makes text, not" in refusal(served, "/", model="text", inputs="a")
    assert "sparse vectors: use POST /v1/embeddings" in refusal(served, "/embed_sparse", model="plain", inputs="a")
    assert "each token: use POST /v1/embeddings" in refusal(served, "/embed_all", model="plain", inputs="a")
    three = refusal(served, "/rerank", model="labels", query="a", documents=["b"])
    assert "ranking needs one label" in three


# Ranking


@pytest.mark.parametrize("model", ["prompted", "plain", "sparse", "tokens", "ranker"])
def test_every_form_of_ranking_has_the_numbers_of_rerank(served: Served, models: dict[str, LLM], model: str) -> None:
    wanted = models[model].rerank("to see", TEXTS)
    order, scores = [one.index for one in wanted], [one.score for one in wanted]
    for path, version in (("/rerank", "1"), ("/v1/rerank", "1"), ("/reranking", "1"), ("/v2/rerank", "2")):
        made = post(served, path, model=model, query="to see", documents=TEXTS)
        assert [one["index"] for one in made["results"]] == order
        assert [one["relevance_score"] for one in made["results"]] == scores
        assert made["meta"]["api_version"]["version"] == version
        assert made["meta"]["billed_units"] == {"search_units": 1}
        assert made["meta"]["tokens"]["input_tokens"] == made["usage"]["total_tokens"] > 0
        assert made["id"]
    plain = post(served, "/rerank", model=model, query="to see", texts=TEXTS, return_text=True)
    assert plain == [{"index": one.index, "score": one.score, "text": one.text} for one in wanted]
    scored = post(served, "/score", model=model, text_1="to see", text_2=TEXTS)
    by_index = {one.index: one.score for one in wanted}
    assert [one["score"] for one in scored["data"]] == [by_index[at] for at in range(3)]
    assert [one["index"] for one in scored["data"]] == [0, 1, 2]
    pairs = post(served, "/v1/score", model=model, text_1=["x", "to see", "x"], text_2=TEXTS)
    assert pairs["data"][1]["score"] == by_index[1]
    assert pairs["data"][0]["score"] == models[model].rerank("x", ["to see"])[0].score


def test_documents_are_objects_too(served: Served) -> None:
    def ranked(documents: list[Any], **fields: Any) -> Any:
        return post(
            served, "/v1/rerank", model="ranker", query="to see", documents=documents, top_n=1,
            return_documents=True, **fields,
        )["results"][0]  # fmt: skip

    text, other = ranked(["to see"]), ranked([{"text": "to see", "id": "7"}])
    assert text["document"] == {"text": "to see"}
    assert other == {**text, "document": {"text": "to see", "id": "7"}}
    fields = ranked([{"title": "t", "body": "b"}], rank_fields=["title", "body"])
    assert fields["relevance_score"] == ranked(["title: t\nbody: b"])["relevance_score"]
    message = refusal(served, "/v1/rerank", model="ranker", query="a", documents=[{"title": "t"}])
    assert message.startswith("documents[0]=")
    assert "it has no 'text'" in message


def test_limits_of_documents(served: Served, models: dict[str, LLM]) -> None:
    def score(path: str = "/v1/rerank", text: str = LONG, **fields: Any) -> Any:
        made = post(served, path, model="ranker", query="to see", documents=[text], **fields)
        return made["results"][0]["relevance_score"]

    llm = models["ranker"]
    offsets = llm.tokenizer.encode_with_offsets(LONG, add_special=False).offsets
    assert score(max_tokens_per_doc=6) == score(text=LONG[: offsets[5][1]])
    assert score(max_tokens_per_doc=6) != score()
    assert score() == llm.rerank("to see", [LONG], truncate=True)[0].score
    assert score(truncate_prompt_tokens=40) != score(truncate_prompt_tokens=20)
    left = {"truncation_direction": "Left"}
    assert score(text="q " + LONG, **left) == score(text="x " + LONG, **left)
    assert score(text="q " + LONG) != score(text="x " + LONG)
    raw = score(text="a", raw_scores=True)
    assert 1 / (1 + np.exp(-raw)) == pytest.approx(score(text="a"))
    long = {"model": "ranker", "query": "a", "documents": [LONG], "truncate": False}
    assert "the text is too long" in refusal(served, "/v1/rerank", **long)


# Labels


def test_classification(served: Served, models: dict[str, LLM]) -> None:
    wanted = models["labels"].classify(TEXTS)
    made = post(served, "/classify", model="labels", input=TEXTS)
    for one, found in zip(wanted, made["data"]):
        assert (found["label"], found["probs"], found["num_classes"]) == (one.label, list(one.scores), 3)
    raw = post(served, "/classify", model="labels", input=TEXTS[0], use_activation=False)
    assert raw["data"][0]["probs"] == list(wanted[0].logits)
    ids = models["labels"].tokenizer.encode(TEXTS[0])
    assert post(served, "/classify", model="labels", input=ids)["data"] == made["data"][:1]
    tokens = sum(len(models["labels"].tokenizer.encode(one)) for one in TEXTS)
    assert made["usage"]["prompt_tokens"] == made["usage"]["total_tokens"] == tokens


def test_prediction(served: Served, models: dict[str, LLM]) -> None:
    def labels(*texts: Any) -> list[Any]:
        found = models["labels"].classify(list(texts))
        return [[{"label": name, "score": score} for name, score in one.ranked] for one in found]

    def made(inputs: Any, **fields: Any) -> Any:
        return post(served, "/predict", model="labels", inputs=inputs, **fields)

    assert made("to see") == made(["to see"]) == labels("to see")[0]
    assert made(["to see", "x"]) == labels(("to see", "x"))[0], "a list of two texts is a pair"
    assert made([["to see"], ["x"]]) == labels("to see", "x")
    assert made([["to see", "x"], "x"]) == labels(("to see", "x"), "x")
    assert post(served, "/", model="labels", inputs="to see") == labels("to see")[0]
    raw = {one["label"]: one["score"] for one in made("to see", raw_scores=True)}
    (found,) = models["labels"].classify(["to see"])
    assert raw == dict(zip(found.labels, found.logits))
    assert made("to see", parameters={"top_k": 2}) == [labels("to see")[0][:2]]
    (sigmoid,) = made("to see", parameters={"function_to_apply": "sigmoid"})
    assert sum(one["score"] for one in sigmoid) != pytest.approx(1)
    for inputs, word in (
        (["a", "b", "c"], "inputs="),
        ([["a", "b", "c"]], "inputs[0]="),
        ([[]], "inputs[0]=[]"),
        ([], "inputs=[]"),
        ([["a"]] * 2049, "the limit is 2,048"),
    ):
        assert word in refusal(served, "/predict", model="labels", inputs=inputs)


def test_pooling_of_every_task(served: Served, models: dict[str, LLM]) -> None:
    def made(model: str, **fields: Any) -> list[Any]:
        return [one["data"] for one in post(served, "/pooling", model=model, input=TEXTS, **fields)["data"]]

    assert made("plain", task="embed") == numbers(models["plain"].embed(TEXTS))
    assert made("prompted", dimensions=16) == numbers(models["prompted"].embed(TEXTS, dimensions=16))
    assert made("labels") == [list(one.scores) for one in models["labels"].classify(TEXTS)]
    wanted = [numbers(one) for one in models["tokens"].token_vectors(TEXTS)]
    assert made("tokens", task="token_embed") == wanted
    tagged = made("tagger")
    assert [len(one) for one in tagged] == [len(models["tagger"].tokenizer.encode(one)) for one in TEXTS]
    assert np.sum(tagged[0], axis=1) == pytest.approx(1)
    assert made("tagger", use_activation=False) != tagged
    for model, fields, word in (
        ("plain", {"task": "classify"}, "task='classify': the task of plain is embed"),
        ("labels", {"dimensions": 2}, "dimensions=2"),
        ("labels", {"encoding_format": "base64"}, "encoding_format='base64'"),
        ("sparse", {}, "use POST /embed_sparse"),
    ):
        assert word in refusal(served, "/pooling", model=model, input="a", **fields)


# text-embeddings-inference


def test_embed(served: Served, models: dict[str, LLM]) -> None:
    for path in ("/embed", "/"):
        made = post(served, path, model="prompted", inputs=TEXTS, prompt_name="query", dimensions=32)
        assert made == numbers(models["prompted"].embed(TEXTS, prompt="query", dimensions=32))
        assert post(served, path, inputs="x") == numbers(models["prompted"].embed(["x"])), "the first model"
    unit = post(served, "/embed", model="plain", inputs="x", normalize=True)
    assert np.linalg.norm(unit[0]) == pytest.approx(1, abs=1e-6)
    assert "the text is too long" in refusal(served, "/embed", model="plain", inputs=LONG)
    ends = [post(served, "/embed", model="plain", inputs="q " + LONG, truncate=True, truncation_direction=side)
            for side in ("Right", "Left")]  # fmt: skip
    assert ends[0] != ends[1]
    assert ends[0] == numbers(models["plain"].embed(["q " + LONG], truncate=True))


def test_token_vectors_and_sparse_vectors(served: Served, models: dict[str, LLM]) -> None:
    wanted = [numbers(one) for one in models["tokens"].token_vectors(TEXTS)]
    assert post(served, "/embed_all", model="tokens", inputs=TEXTS) == wanted
    assert post(served, "/", model="tokens", inputs=TEXTS) == wanted
    assert [one["embedding"] for one in post(served, "/embeddings", model="tokens", input=TEXTS)] == wanted
    found = post(served, "/embed_sparse", model="sparse", inputs=TEXTS)
    assert [{one["index"]: one["value"] for one in each} for each in found] == models["sparse"].sparse(TEXTS)
    assert post(served, "/", model="sparse", inputs=TEXTS) == found


def test_similarity(served: Served, models: dict[str, LLM]) -> None:
    def made(model: str, **parameters: Any) -> Any:
        asked = {"source_sentence": "to see", "sentences": TEXTS}
        return post(served, "/similarity", model=model, inputs=asked, parameters=parameters)

    own = models["prompted"].embed(TEXTS).astype(np.float64)
    assert made("prompted") == pytest.approx(own @ own[0], abs=1e-6)
    assert made("prompted", prompt_name="query") != made("prompted")
    by_index = {one.index: one.score for one in models["plain"].rerank("to see", TEXTS)}
    assert made("plain") == pytest.approx([by_index[at] for at in range(3)], rel=1e-12)


def test_cosines_do_not_depend_on_the_layout_of_their_rows() -> None:
    vectors = np.random.default_rng(7).standard_normal((50, 384)).astype(np.float32)
    first = np.broadcast_to(vectors[0], vectors.shape)
    wanted = similarity_of_rows(np.ascontiguousarray(first), vectors)
    assert similarity_of_rows(first, vectors) == wanted
    assert similarity_of_rows(first, np.asfortranarray(vectors)) == wanted
    assert [similarity_of_rows(first[:1], row[None])[0] for row in vectors] == wanted


def test_tokens_and_information(served: Served, models: dict[str, LLM]) -> None:
    tokenizer = models["plain"].tokenizer
    (found,) = post(served, "/tokenize", model="plain", inputs="to see")
    encoding = tokenizer.encode_with_offsets("to see")
    assert [one["id"] for one in found] == encoding.ids
    assert [one["special"] for one in found] == [token.special for token in encoding]
    inner = [one for one in found if not one["special"]]
    assert [(one["start"], one["stop"]) for one in inner] == [
        (token.start, token.end) for token in encoding if not token.special
    ]
    bare = post(served, "/tokenize", model="plain", inputs=TEXTS, add_special_tokens=False)
    assert [[one["id"] for one in each] for each in bare] == [
        tokenizer.encode(text, add_special=False) for text in TEXTS
    ]
    ids = [tokenizer.encode(text) for text in TEXTS]
    plain = [tokenizer.decode(one, skip_special=True) for one in ids]
    assert post(served, "/decode", model="plain", ids=ids) == plain
    assert post(served, "/decode", model="plain", ids=ids[0], skip_special_tokens=False) == [
        tokenizer.decode(ids[0], skip_special=False)
    ]
    assert "prompt does not go with inputs" in refusal(served, "/tokenize", model="plain", inputs="a", prompt="b")
    assert "id=99999" in refusal(served, "/decode", model="plain", ids=[99999])
    kinds = {
        name: httpx.get(f"{served.url}/info", params={"model": name}).json()["model_type"]
        for name in ("plain", "sparse", "ranker", "labels")
    }
    assert kinds["plain"] == {"embedding": {"pooling": "mean"}}
    assert kinds["sparse"] == {"embedding": {"pooling": "splade"}}
    assert kinds["ranker"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    assert list(kinds["labels"]) == ["classifier"]
    about = httpx.get(f"{served.url}/info").json()
    assert (about["model_id"], about["model_dtype"]) == ("prompted", "F32")
    assert about["max_input_length"] == models["prompted"].context


# Cohere and Ollama


def test_cohere_embeds(served: Served, models: dict[str, LLM]) -> None:
    llm = models["prompted"]
    for kind, prompt in (("search_query", "query"), ("search_document", "document"), ("clustering", "")):
        made = post(served, "/v1/embed", model="prompted", texts=TEXTS, input_type=kind)
        assert made["embeddings"] == numbers(llm.embed(TEXTS, prompt=prompt))
        assert made["response_type"] == "embeddings_floats"
    asked = {"model": "prompted", "input_type": "search_query", "output_dimension": 16}
    forms = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    by_type = post(served, "/v2/embed", texts=TEXTS, embedding_types=forms, **asked)
    assert list(by_type["embeddings"]) == forms
    assert by_type["embeddings"]["float"] == numbers(llm.embed(TEXTS, prompt="query", dimensions=16))
    assert by_type["texts"] == TEXTS
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    assert post(served, "/v2/embed", inputs=parts, **asked)["embeddings"] == {"float": by_type["embeddings"]["float"]}
    tokens = by_type["meta"]["billed_units"]["input_tokens"]
    assert tokens == sum(len(llm.tokenizer.encode("a query: " + text)) for text in TEXTS)


def test_cohere_truncates_at_either_end(served: Served, models: dict[str, LLM]) -> None:
    def made(text: str, truncate: str, **fields: Any) -> Any:
        asked = {"model": "plain", "input_type": "search_query", "truncate": truncate, **fields}
        return post(served, "/v2/embed", texts=[text], **asked)["embeddings"]["float"]

    assert made(LONG, "END") == numbers(models["plain"].embed([LONG], truncate=True))
    assert made("q " + LONG, "START") == made("x " + LONG, "START") != made("x " + LONG, "END")
    assert made(LONG, "END", max_tokens=8) == made(LONG[:60], "END", max_tokens=8) != made(LONG, "END")
    for truncate, word in (("NONE", "the text is too long"), ("odd", "truncate='odd'")):
        message = refusal(
            served, "/v2/embed", model="plain", texts=[LONG], input_type="search_query", truncate=truncate
        )
        assert word in message


def test_ollama_shortens_vectors_and_has_prompts(served: Served, models: dict[str, LLM]) -> None:
    made = post(served, "/api/embed", model="prompted", input=TEXTS, dimensions=16, prompt_name="query")
    assert made["embeddings"] == numbers(models["prompted"].embed(TEXTS, prompt="query", dimensions=16))
    assert "can be cut to 16, 32" in refusal(served, "/api/embed", model="prompted", input="a", dimensions=17)
    for name, kind in (
        ("plain", "embedding"),
        ("sparse", "embedding"),
        ("ranker", "rerank"),
        ("labels", "classify"),
        ("tagger", "tag"),
        ("text", "completion"),
    ):
        assert kind in post(served, "/api/show", model=name)["capabilities"]
        listed = httpx.get(served.url + "/api/tags").json()["models"]
        assert kind in next(one for one in listed if one["name"] == name)["capabilities"]
        of_page = httpx.get(served.url + "/look/models").json()["models"]
        assert kind in next(one for one in of_page if one["name"] == name)["capabilities"]
        assert httpx.get(f"{served.url}/look/models/{name}").json()["task"]


# Errors


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("/v1/embeddings", {"input": "a", "prompt_name": "odd"}, "prompt_name='odd': the model has no prompt of this"),
        ("/v1/embeddings", {"input": "a", "prompt_name": "odd: "}, "prompt_name='odd: '"),
        ("/v1/embeddings", {"input": "a", "prompt_name": "query", "task": "a"}, "both choose the prompt"),
        ("/v1/embeddings", {"input": [5, 6], "prompt_name": "query"}, "not before token ids"),
        ("/v1/embeddings", {"input": "a", "late_chunking": True}, "late_chunking=True: not supported"),
        ("/v1/embeddings", {"input": "a", "normalized": False}, "normalized=False"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens=0"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens=-2"),
        ("/v1/embeddings", {"input": [{"image": "a"}]}, "input[0]"),
        ("/v1/embeddings", {"input": "a", "dimensions": 17}, "dimensions=17"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "the limit is 2,048"),
        ("/rerank", {"query": "a", "documents": ["b"] * 2049}, "the limit is 2,048"),
        ("/rerank", {"query": "a", "documents": ["b"], "instruction": "c"}, "takes no instruction"),
        ("/rerank", {"query": "a", "documents": [5]}, "documents[0]=5"),
        ("/rerank", {"query": "a", "texts": ["b"], "max_tokens_per_doc": 5}, "max_tokens_per_doc does not go with"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n=0"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 has 2 texts and text_2 has 1"),
        ("/score", {"text_1": [], "text_2": ["c"]}, "text_1=[]"),
        ("/score", {"text_1": "a"}, "text_2 is missing"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "inputs.sentences is empty"),
        ("/embed", {"inputs": "a", "normalize": False}, "normalize=False"),
        ("/embed", {"inputs": ""}, "text=''"),
        ("/", {"inputs": "a", "raw_scores": True}, "raw_scores"),
        ("/decode", {"ids": [[5], 5]}, "ids[1]=5"),
        ("/v1/embed", {"texts": []}, "texts is missing"),
        ("/v1/embed", {"texts": ["a"], "truncate": "\ud800"}, "truncate has a lone surrogate"),
        ("/v1/embed", {"texts": ["a"], "input_type": "image"}, "input_type='image'"),
        ("/v1/embed", {"texts": ["a"], "images": ["b"]}, "images="),
        ("/v2/embed", {"texts": ["a"]}, "input_type is missing"),
        ("/v2/embed", {"texts": ["a"], "input_type": "clustering", "embedding_types": []}, "embedding_types"),
    ],
)  # fmt: skip
def test_wrong_requests(served: Served, path: str, fields: dict[str, Any], word: str) -> None:
    assert word in refusal(served, path, model="prompted", **fields)


def test_errors_have_the_form_of_the_api(served: Served) -> None:
    def said(path: str) -> Any:
        return httpx.post(served.url + path, json={"odd": 1}).json()

    assert list(said("/v2/embed")) == list(said("/v1/embed")) == list(said("/v2/rerank")) == ["message"]
    assert said("/embed").keys() == said("/predict").keys() == {"error", "error_type"}
    assert said("/embed")["error_type"] == "Validation"
    assert said("/score")["error"].keys() == {"message", "type", "param", "code"}
    assert said("/score")["error"]["param"] == "odd"
    assert said("/rerank")["error"]["code"] == 400
    assert list(httpx.get(served.url + "/v2/odd").json()) == ["message"]


# Batches and hostile requests


def test_batches_rank_and_score(folder: Path, models: dict[str, LLM], tmp_path: Path) -> None:
    bodies = {"/v1/rerank": {"query": "to see", "documents": TEXTS}, "/v1/score": {"text_1": "to see", "text_2": TEXTS}}
    lines = [
        json.dumps({"custom_id": url, "method": "POST", "url": url, "body": {"model": "ranker", **body}})
        for url, body in bodies.items()
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    with pellucid.load(folder / "ranker", threads=1) as llm, Batch(source, target) as batch:
        batch.bind("0" * 64, "0" * 64)
        batch.run(llm)
    found = [json.loads(line)["response"] for line in target.read_text().splitlines()]
    assert [one["status_code"] for one in found] == [200, 200]
    wanted = models["ranker"].rerank("to see", TEXTS)
    results = found[0]["body"]["results"]
    assert [(one["index"], one["relevance_score"]) for one in results] == [(x.index, x.score) for x in wanted]
    scores = [one["score"] for one in found[1]["body"]["data"]]
    assert scores == [score for _, score in sorted((one.index, one.score) for one in wanted)]


VALID: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "prompted", "input": "a"},
    "/v1/embed": {"model": "prompted", "texts": ["a"]},
    "/v2/embed": {"model": "prompted", "texts": ["a"], "input_type": "clustering"},
    "/v2/rerank": {"model": "ranker", "query": "a", "documents": ["b"]},
    "/rerank": {"model": "tokens", "query": "a", "texts": ["b"]},
    "/score": {"model": "sparse", "text_1": "a", "text_2": "b"},
    "/classify": {"model": "labels", "input": "a"},
    "/pooling": {"model": "tagger", "input": "a"},
    "/embed": {"model": "plain", "inputs": "a"},
    "/embed_all": {"model": "tokens", "inputs": "a"},
    "/embed_sparse": {"model": "sparse", "inputs": "a"},
    "/": {"model": "labels", "inputs": "a"},
    "/predict": {"model": "labels", "inputs": "a"},
    "/similarity": {"model": "plain", "inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/decode": {"model": "plain", "ids": [97]},
    "/tokenize": {"model": "plain", "inputs": "a"},
    "/embedding": {"model": "tokens", "input": "a"},
    "/api/embed": {"model": "prompted", "input": "a"},
}
SCHEMAS = {
    path: route.body.schema["properties"]
    for api in known_apis().values()
    for name, route in api.routes.items()
    for path in [name.split(" ")[1]]
    if name.startswith("POST") and path in VALID and route.body
}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4) | st.sampled_from(["\ud800", "</s>", "query", "Left", "a" * 5000, 0, 1, -1, 97, 1 << 63]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["text", "content", "type", "sentences"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.slow
@given(st.sampled_from(sorted(VALID)), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_field_breaks_the_server(served: Served, path: str, data: st.DataObject) -> None:
    known = sorted(set(SCHEMAS[path]) - {"model", "deadline"})
    changes = data.draw(st.dictionaries(st.sampled_from(known), JUNK, min_size=1, max_size=2))
    answer = httpx.post(served.url + path, content=json.dumps({**VALID[path], **changes}).encode(), timeout=60)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        said = answer.json()
        assert said.get("error") or said.get("message")
