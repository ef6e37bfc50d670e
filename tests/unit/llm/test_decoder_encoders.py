"""Decoders used as encoders: equal bits in one step or several, the prefix cache, prompts and instructions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from msgspec.structs import replace
from support.decoders import arrays_of, edited, modules, write_tensors

import pellucid
from pellucid.encoders.ranking import pair_inputs
from pellucid.engine.tasks.encoding import without_padding
from pellucid.errors import ContextOverflow, InvalidRequest, UnsupportedModel
from pellucid.llm import LLM
from pellucid.model.outputs import PairPrompt, Task
from pellucid.model.rerankers import RERANKERS
from pellucid.runtime.batch import STEP_TOKENS, Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.testing import random_model

QUERY = "Instruct: Find the passage that answers the question\nQuery:"
LONG = "the cat sat on the mat and saw a red bird in the old tree. " * 20
TEXTS = ["a red bird", "the old tree", LONG, "on the mat"]
YES, NO = ord("y"), ord("n")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen 3 with a token for each byte."""
    folder = tmp_path_factory.mktemp("models") / "qwen3"
    return random_model("qwen3", folder, kind="safetensors", context=2048)


@pytest.fixture(scope="module")
def embedder(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        "modules.json": modules(("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")),
        "1_Pooling/config.json": {"pooling_mode_lasttoken": True},
        "config_sentence_transformers.json": {"prompts": {"query": QUERY, "document": ""}, "default_prompt_name": None},
    }
    return edited(tmp_path_factory.mktemp("models") / "embedder", plain, files)


@pytest.fixture
def llm(embedder: Path) -> Iterator[LLM]:
    with pellucid.load(embedder, threads=2, kv_cache="f16") as llm:
        yield llm


def test_a_text_has_the_same_bits_alone_in_a_batch_and_in_any_number_of_steps(llm: LLM) -> None:
    ids = llm.inputs.sentences([LONG])[0]
    assert len(ids) > 2 * STEP_TOKENS
    together = llm.embed(TEXTS)
    for number, text in enumerate(TEXTS):
        llm.engine.cache.clear_prefixes()
        assert llm.embed([text]).tobytes() == together[number].tobytes()
    for size in (64, 200, STEP_TOKENS):
        table = BlockTable()
        for at in range(0, len(ids), size):
            part = ids[at : at + size]
            rows = llm.runner.forward([Chunk(table, part, int(at + size >= len(ids)))])
        assert rows.tobytes() == together[2].tobytes()


def test_an_instruction_comes_from_the_prefix_cache(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = list[int]()
    forward = llm.runner.forward_all

    def counting(chunks: list[Chunk]) -> Any:
        counted.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    monkeypatch.setattr(llm.runner, "forward_all", counting)
    instruction = "Instruct: " + "Find the passage that answers it. " * 8 + "\nQuery:"
    first = llm.embed(["a red bird", "the old tree"], prompt=instruction)
    page = len(instruction) // 16 * 16
    # The texts of one call share the instruction, too.
    assert sum(counted) < 2 * len(instruction)
    counted.clear()
    again = llm.embed(["on the mat", "a red bird"], prompt=instruction)
    assert sum(counted) <= 2 * (len(instruction) - page + 64)
    llm.engine.cache.clear_prefixes()
    assert llm.embed(["a red bird"], prompt=instruction).tobytes() == first[0].tobytes() == again[1].tobytes()


def test_a_plain_model_embeds_on_request(plain: Path, llm: LLM) -> None:
    with pellucid.load(plain, threads=1, task="embed", kv_cache="f16") as other:
        assert other.embed(TEXTS).tobytes() == llm.embed(TEXTS).tobytes()
    with pellucid.load(plain, threads=1) as other, pytest.raises(InvalidRequest, match="task=embed"):
        other.embed(TEXTS)


def test_a_sentence_encoder_ranks_with_its_prompts(llm: LLM) -> None:
    documents = TEXTS[:2]
    query, vectors = llm.embed(["bird"], prompt="query")[0], llm.embed(documents, prompt="document")
    found = {one.index: one.score for one in llm.rerank("bird", documents)}
    for index, vector in enumerate(vectors):
        assert found[index] == pytest.approx(float(query @ vector), abs=1e-6)
    other = {one.index: one.score for one in llm.rerank("bird", documents, instruction="Find a tree")}
    literal = llm.embed(["bird"], prompt="Instruct: Find a tree\nQuery:")[0]
    assert other[0] == pytest.approx(float(literal @ vectors[0]), abs=1e-6)
    assert llm.rerank("bird", []) == []


def test_padding_at_the_end_is_no_last_token(plain: Path, tmp_path: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    score = {"score.weight": np.ones((3, config["hidden_size"]), np.float32) / 8}
    folder = edited(
        tmp_path / "m", plain, architectures=["Qwen3ForSequenceClassification"], pad_token_id=257, num_labels=3
    )
    write_tensors(folder / "model.safetensors", arrays_of(plain) | score)
    with pellucid.load(folder, threads=1) as llm:
        (ids,) = llm.inputs.texts(["a red bird"])
        padded = type(ids)([*ids.ids, 257, 257])
        assert without_padding(padded, llm.spec).ids == ids.ids
        assert llm.encode([ids])[0].tobytes() == llm.encode([padded])[0].tobytes()
        assert llm.encode([type(ids)([257, 257])])[0].shape == (1, 3)


@pytest.fixture(scope="module")
def reranker(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        "modules.json": modules(("LogitScore", "1_LogitScore")),
        "1_LogitScore/config.json": {"true_token_id": YES, "false_token_id": NO},
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "prompts": {"web": "Given a query, find passages"},
            "default_prompt_name": "web",
        },
        "chat_template.jinja": (
            '{%- for m in messages if m.role == "system" %}<s>{{ m.content }}\n{% endfor -%}'
            '{%- for m in messages if m.role == "query" %}Q: {{ m.content }}\n{% endfor -%}'
            '{%- for m in messages if m.role == "document" %}D: {{ m.content }}</s>{% endfor -%}'
        ),
    }
    return edited(tmp_path_factory.mktemp("models") / "reranker", plain, files)


def test_a_reranker_reads_its_chat_template(reranker: Path, plain: Path) -> None:
    with pellucid.load(reranker, threads=1, precise=True) as llm:
        (pair,) = pair_inputs(llm.inputs, "which?", ["this <s>"])
        text = "Given a query, find passages\nQ: which?\nD: this "
        # The control token of the document stays text; the control tokens of the template do not.
        assert pair.ids == [256, *text.encode(), *b"<s>", 257]
        (other,) = pair_inputs(llm.inputs, "which?", ["this"], "Find trees in it")
        assert bytes(other.ids[1:17]) == b"Find trees in it"
        (named,) = pair_inputs(llm.inputs, "which?", ["this <s>"], "web")
        assert named == pair
        ranked = llm.rerank("which?", ["this", "that"])
        classified = llm.classify([("which?", "this")])[0]
        assert set(classified.labels) == {f"token {YES}", f"token {NO}"}
    prompts = [[256, *f"Given a query, find passages\nQ: which?\nD: {d}".encode(), 257] for d in ("this", "that")]
    with pellucid.load(plain, threads=1, precise=True) as llm:
        for index, ids in enumerate(prompts):
            logits = llm.runner.forward([Chunk(BlockTable(), ids, 1)])[0].astype(np.float64)
            wanted = 1 / (1 + np.exp(logits[NO] - logits[YES]))
            score = next(one.score for one in ranked if one.index == index)
            assert score == pytest.approx(wanted, abs=1e-6)


def test_a_reranker_without_a_template_asks_for_one(reranker: Path) -> None:
    template = "{{ messages[0].content }}"
    words = 'roles "query" and "document"'
    with pellucid.load(reranker, threads=1, chat_template=template) as llm, pytest.raises(InvalidRequest, match=words):
        llm.rerank("which?", ["this"])


def test_a_prompt_is_cut_at_the_end_of_the_document_only(reranker: Path) -> None:
    with pellucid.load(reranker, threads=1) as llm:
        inputs = structs.replace(llm.inputs, context=60)
        (pair,) = pair_inputs(inputs, "which?", ["this" * 40], truncate=True)
        assert len(pair.ids) == 60
        left = structs.replace(inputs, cut="left")
        assert pair_inputs(left, "which?", ["this"], truncate=True) == pair_inputs(inputs, "which?", ["this"])
        with pytest.raises(InvalidRequest, match="only the end of a document is cut off"):
            pair_inputs(left, "which?", ["this" * 40], truncate=True)


def test_a_published_reranker_reads_its_prompt(plain: Path, tmp_path: Path) -> None:
    folder = edited(tmp_path / "m", plain)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {"yes": vocabulary.pop("<unused0>"), "no": vocabulary.pop("<unused1>")}
    path.write_text(json.dumps(spec))
    prompt = RERANKERS["qwen3"].prompt
    with pellucid.load(folder, threads=1, task="classify") as llm:
        assert llm.spec.labels is not None
        assert (llm.spec.labels.names, llm.spec.pair_prompt) == (("yes", "no"), prompt)
        (pair,) = pair_inputs(llm.inputs, "which?", ["{query}"])
        filled = prompt.template.replace("{instruction}", prompt.instruction).replace("{query}", "which?")
        assert bytes(pair.ids) == filled.replace("{document}", "{query}").encode()
        (other,) = pair_inputs(llm.inputs, "which?", ["this"], "Find a tree")
        assert b"<Instruct>: Find a tree\n<Query>: which?\n<Document>: this<|im_end|>" in bytes(other.ids)
        scores = [one.score for one in llm.rerank("which?", ["this", "that"])]
        assert all(0 < score < 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        with pytest.raises(InvalidRequest, match=r"documents\[0\]=3: must be a text"):
            llm.rerank("which?", [3])  # type: ignore[list-item]
        with pytest.raises(ContextOverflow):
            llm.rerank("which?", ["x" * 4000])
        (cut,) = pair_inputs(llm.inputs, "which?", ["é" * 4000], truncate=True)
        assert llm.context - 2 <= len(cut.ids) <= llm.context
        assert bytes(cut.ids).decode().endswith("é<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        with pytest.raises(ContextOverflow, match="shorten the query"):
            pair_inputs(llm.inputs, "q" * 3000, ["this"], truncate=True)


def test_a_line_with_an_instruction_is_left_out_without_one(plain: Path) -> None:
    with pellucid.load(plain, threads=1, task="embed") as llm:
        template = PairPrompt("a\ninstruction: {instruction}\nquery: {query}\n{document}")
        inputs = replace(llm.inputs, spec=replace(llm.spec, pair_prompt=template))
        assert bytes(pair_inputs(inputs, "q", ["d"])[0].ids) == b"a\nquery: q\nd"
        assert bytes(pair_inputs(inputs, "q", ["d"], "i j")[0].ids) == b"a\ninstruction: i j\nquery: q\nd"
        plain_prompt = replace(llm.spec, pair_prompt=PairPrompt("{query}{document}"))
        with pytest.raises(InvalidRequest, match="takes no instruction"):
            pair_inputs(replace(llm.inputs, spec=plain_prompt), "q", ["d"], "i j")


@pytest.mark.parametrize(("task", "words"), [("tag", "score"), ("decide", "decide"), ("classify", "no token yes")])
def test_tasks_that_the_file_lacks_are_refused(task: Task, words: str, plain: Path) -> None:
    with pytest.raises((UnsupportedModel, pellucid.errors.FileFormatError), match=words):
        pellucid.load(plain, threads=1, task=task)
