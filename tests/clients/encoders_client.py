"""Encoders: clients of OpenAI, Cohere, Jina, text-embeddings-inference and Ollama ask random encoders.

The server is of this program's own. Each number is the number of the Python API (``llm.embed``, ``rerank``,
``classify``) in the server's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# huggingface_hub reads it when it is imported. Offline it refuses servers on this machine too.
os.environ["HF_HUB_OFFLINE"] = "0"

import chromadb
import cohere
import numpy as np
import ollama
import pytest
from chromadb.utils import embedding_functions
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import CohereTextEmbedder
from haystack_integrations.components.embedders.jina import JinaTextEmbedder
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.jina import JinaRanker
from huggingface_hub import InferenceClient
from langchain_cohere import CohereEmbeddings, CohereRerank
from langchain_core.documents import Document as LangChainDocument
from langchain_openai import OpenAIEmbeddings
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference as TeiRerank
from openai import OpenAI

PYTHON = os.environ.get("PELLUCID_PYTHON", sys.executable)
QUERY, TEXTS = "a red bird", ["a bird that sings", "an old stone house", "the rain of the north"]
MODELS = ("prompted", "ranker", "labels")
MADE = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
import pellucid
from support.encoder_models import encoder_models
folder, query, *texts = sys.argv[1:]
encoder_models(Path(folder))
llm, ranker, labels = (pellucid.load(f"{folder}/{name}") for name in ("prompted", "ranker", "labels"))
prompts = ("", "query", "document")
made = {f"embed {name}": llm.embed(texts, prompt=name).tolist() for name in prompts}
made["embed short"] = llm.embed(texts, dimensions=16).tolist()
made["rerank"] = {one.index: one.score for one in ranker.rerank(query, texts)}
made["cosines"] = {one.index: one.score for one in pellucid.load(f"{folder}/plain").rerank(query, texts)}
made["classify"] = labels.classify([query])[0].ranked
print(json.dumps(made))
"""


class Wanted:
    """The numbers of the Python API."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.vectors = {name: np.array(made[name], np.float32) for name in made if name.startswith("embed")}
        self.scores = {int(at): score for at, score in made["rerank"].items()}
        self.cosines = [made["cosines"][str(at)] for at in range(len(TEXTS))]
        self.order = sorted(self.scores, key=lambda at: -self.scores[at])
        self.labels = [(str(label), float(score)) for label, score in made["classify"]]

    def check_vectors(self, found: Any, prompt: str = "") -> None:
        """Each component is equal as float32."""
        np.testing.assert_array_equal(np.array(found, np.float32), self.vectors[f"embed {prompt}"])

    def check_ranking(self, found: list[tuple[int, float]]) -> None:
        """Indices with their scores, the best first."""
        assert found == [(at, self.scores[at]) for at in self.order][: len(found)], found


def of_openai(url: str, wanted: Wanted) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        made = client.embeddings.create(model="prompted", input=TEXTS)  # base64 on the wire
        wanted.check_vectors([one.embedding for one in made.data])
        more = {"input_type": "query"}
        made = client.embeddings.create(model="prompted", input=TEXTS, extra_body=more)
        wanted.check_vectors([one.embedding for one in made.data], "query")
        made = client.embeddings.create(model="prompted", input=TEXTS, dimensions=16)
        wanted.check_vectors([one.embedding for one in made.data], "short")


def of_cohere(url: str, wanted: Wanted) -> None:
    first = cohere.Client("none", base_url=url)
    ranked = first.rerank(model="ranker", query=QUERY, documents=TEXTS, top_n=2, return_documents=True)
    wanted.check_ranking([(one.index, one.relevance_score) for one in ranked.results])
    assert ranked.results[0].document.text == TEXTS[wanted.order[0]]
    assert ranked.meta.billed_units.search_units == 1
    made = first.embed(model="prompted", texts=TEXTS, input_type="search_document")
    wanted.check_vectors(made.embeddings, "document")
    second = cohere.ClientV2("none", base_url=url)
    other = second.rerank(model="ranker", query=QUERY, documents=TEXTS, max_tokens_per_doc=100)
    wanted.check_ranking([(one.index, one.relevance_score) for one in other.results])
    forms = ["float", "int8", "uint8", "binary", "ubinary"]
    by_type = second.embed(model="prompted", texts=TEXTS, input_type="search_query", embedding_types=forms).embeddings
    wanted.check_vectors(by_type.float_, "query")
    positive = wanted.vectors["embed query"] > 0
    np.testing.assert_array_equal(np.unpackbits(np.array(by_type.ubinary, np.uint8), axis=1), positive)
    assert len(by_type.int8[0]) == positive.shape[1]
    with pytest.raises(cohere.errors.BadRequestError, match="ranking needs one label"):
        second.rerank(model="labels", query=QUERY, documents=TEXTS)


def of_huggingface(url: str, wanted: Wanted) -> None:
    for path in ("/embed", ""):
        client = InferenceClient(model=url + path)
        wanted.check_vectors(client.feature_extraction(TEXTS))
        wanted.check_vectors(client.feature_extraction(TEXTS, prompt_name="query", truncate=True), "query")
    cosines = InferenceClient(model=f"{url}/similarity").sentence_similarity(QUERY, other_sentences=TEXTS)
    assert all(-1 <= one <= 1 for one in cosines)


def of_labels(url: str, wanted: Wanted) -> None:
    """The routes have no name of a model: a server of its own for the classifier."""
    for path in ("/predict", ""):
        client = InferenceClient(model=url + path)
        made = client.text_classification(QUERY, top_k=3)
        assert [(one.label, one.score) for one in made] == wanted.labels, made


def of_plain(url: str, wanted: Wanted) -> None:
    """The cosines of vectors without prompts."""
    made = InferenceClient(model=f"{url}/similarity").sentence_similarity(QUERY, other_sentences=TEXTS)
    assert made == wanted.cosines


def of_langchain(url: str, wanted: Wanted) -> None:
    vectors = OpenAIEmbeddings(model="prompted", base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False)
    wanted.check_vectors(vectors.embed_documents(TEXTS))
    of_service = CohereEmbeddings(model="prompted", base_url=url, cohere_api_key="none")
    wanted.check_vectors(of_service.embed_documents(TEXTS), "document")
    wanted.check_vectors([of_service.embed_query(text) for text in TEXTS], "query")
    ranker = CohereRerank(model="ranker", base_url=url, cohere_api_key="none")
    found = ranker.rerank([LangChainDocument(text) for text in TEXTS], QUERY)
    wanted.check_ranking([(one["index"], one["relevance_score"]) for one in found])


def of_llama_index(url: str, wanted: Wanted) -> None:
    vectors = TextEmbeddingsInference(model_name="prompted", base_url=url)
    wanted.check_vectors(vectors.get_text_embedding_batch(TEXTS))
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranker = JinaRerank(api_key="none", model="ranker", base_url=f"{url}/v1", top_n=3)
    found = ranker.postprocess_nodes(nodes, query_str=QUERY)
    wanted.check_ranking([(TEXTS.index(one.node.text), one.score) for one in found])


def of_ranker(url: str, wanted: Wanted) -> None:
    """The client of text-embeddings-inference names no model: a server of its own for the cross-encoder."""
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranker = TeiRerank(base_url=url, top_n=3)
    found = ranker.postprocess_nodes(nodes, query_str=QUERY)
    wanted.check_ranking([(TEXTS.index(one.node.text), one.score) for one in found])


def of_haystack(url: str, wanted: Wanted) -> None:
    key = Secret.from_token("none")
    ranker = CohereRanker(model="ranker", api_base_url=url, api_key=key)
    found = ranker.run(query=QUERY, documents=[Document(content=text) for text in TEXTS])["documents"]
    wanted.check_ranking([(TEXTS.index(one.content), one.score) for one in found])
    embedder = CohereTextEmbedder(model="prompted", api_base_url=url, api_key=key)
    wanted.check_vectors([embedder.run(text)["embedding"] for text in TEXTS], "query")
    jina = JinaTextEmbedder(model="prompted", base_url=f"{url}/v1/embeddings", api_key=key, task="retrieval.query")
    wanted.check_vectors([jina.run(text)["embedding"] for text in TEXTS], "query")
    other = JinaRanker(model="ranker", base_url=f"{url}/v1/rerank", api_key=key, top_k=2)
    found = other.run(query=QUERY, documents=[Document(content=text) for text in TEXTS])["documents"]
    wanted.check_ranking([(TEXTS.index(one.content), one.score) for one in found])


def of_chroma(url: str, wanted: Wanted) -> None:
    functions: list[Any] = [
        embedding_functions.OpenAIEmbeddingFunction(api_key="none", api_base=f"{url}/v1", model_name="prompted"),
        embedding_functions.HuggingFaceEmbeddingServer(url=f"{url}/embed"),
        embedding_functions.OllamaEmbeddingFunction(url=url, model_name="prompted"),
    ]
    for function in functions:
        wanted.check_vectors(function(TEXTS))
    notes = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False)).create_collection(
        "notes", embedding_function=functions[0]
    )
    notes.add(ids=["0", "1", "2"], documents=TEXTS)
    assert notes.query(query_texts=[TEXTS[2]], n_results=1)["ids"] == [["2"]]


def of_ollama(url: str, wanted: Wanted) -> None:
    client = ollama.Client(host=url)
    wanted.check_vectors(client.embed("prompted", TEXTS).embeddings)
    wanted.check_vectors(client.embed("prompted", TEXTS, dimensions=16).embeddings, "short")
    assert client.show("ranker").capabilities == ["rerank"]


def served(folder: str, names: tuple[str, ...], checks: list[Callable[[str, Wanted], None]], wanted: Wanted) -> None:
    """Start a server with models of a folder, and run the checks against it."""
    paths = [f"{folder}/{name}" for name in names]
    server = subprocess.Popen(
        [PYTHON, "-m", "pellucid", "serve", *paths, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if " at http" in line)
        for check in checks:
            check(url, wanted)
            print(f"  {check.__name__}: ok", flush=True)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    warnings.simplefilter("ignore")
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            [PYTHON, "-W", "ignore", "-c", MADE, folder, QUERY, *TEXTS],
            check=True, cwd=root, stdout=subprocess.PIPE,
        )  # fmt: skip
        wanted = Wanted(json.loads(made.stdout))
        clients = [of_openai, of_cohere, of_huggingface, of_langchain]
        clients += [of_llama_index, of_haystack, of_chroma, of_ollama]
        served(folder, MODELS, clients, wanted)
        served(folder, ("labels",), [of_labels], wanted)
        served(folder, ("ranker",), [of_ranker], wanted)
        served(folder, ("plain",), [of_plain], wanted)


main()
