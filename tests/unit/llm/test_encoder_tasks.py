"""The tasks of encoders give the results of transformers' pipelines (tests/oracles/tasks_oracle.py).

Labels, orders, characters and texts are equal; numbers differ by at most 1e-4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.tiny import TASKS

import pellucid
from pellucid.encoders.tasks import GROUPINGS
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM

CLOSE = 1e-4


@pytest.fixture(scope="module")
def task(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, Any]]:
    """A precise model and its golden results."""
    folder = TASKS[request.param]
    with pellucid.load(folder, precise=True, threads=2) as llm:
        yield llm, json.loads((folder / "results.json").read_text("utf-8"))


def models(*heads: str) -> pytest.MarkDecorator:
    names = [name for name in TASKS if name.split("-")[1] in heads]
    assert names
    return pytest.mark.parametrize("task", names, indirect=True)


@models("classify", "many")
def test_classify(task: tuple[LLM, Any]) -> None:
    llm, results = task
    texts = [text if isinstance(text, str) else tuple(text) for text, _ in results]
    for one, (text, scores) in zip(llm.classify(texts), results):
        assert dict(one.ranked) == pytest.approx(scores, abs=CLOSE), text
        assert [label for label, _ in one.ranked] == sorted(scores, key=lambda label: -scores[label])


@models("rank")
def test_rerank(task: tuple[LLM, Any]) -> None:
    llm, results = task
    for query, documents, scores in results:
        ranked = llm.rerank(query, documents)
        order = sorted(range(len(documents)), key=lambda index: -scores[index])
        assert [one.index for one in ranked] == order
        assert [one.score for one in ranked] == pytest.approx([scores[i] for i in order], abs=CLOSE)
        assert llm.rerank(query, documents, top=3) == ranked[:3]


@models("fill")
def test_fill(task: tuple[LLM, Any]) -> None:
    llm, results = task
    for text, masks in results:
        found = llm.fill(text)
        assert [[(one.token, one.text) for one in own] for own in found] == [
            [(token, part) for token, part, *_ in own] for own in masks
        ]
        for own, wanted in zip(found, masks):
            assert [one.probability for one in own] == pytest.approx([one[2] for one in wanted], abs=CLOSE)
            if len(masks) == 1:  # with several masks, the pipeline keeps the special tokens in the text
                assert [one.filled for one in own] == [one[3] for one in wanted]


@models("tag")
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_tag(task: tuple[LLM, Any], grouping: Any) -> None:
    llm, results = task
    for text, groups in results:
        found, wanted = llm.tag(text, grouping), groups[grouping]
        assert [(one.label, one.start, one.end) for one in found] == [
            (label, start, end) for label, _, start, end in wanted
        ], text
        assert [one.score for one in found] == pytest.approx([one[1] for one in wanted], abs=CLOSE)
        assert [one.text for one in found] == [text[one.start : one.end] for one in found]


@models("answer")
def test_answer(task: tuple[LLM, Any]) -> None:
    llm, results = task
    windows = 0
    for question, text, unanswerable, spans in results:
        found = llm.answer(question, text, top=3, unanswerable=unanswerable)
        assert [(one.start, one.end) for one in found] == [(start, end) for _, start, end in spans], text
        assert [one.score for one in found] == pytest.approx([one[0] for one in spans], abs=CLOSE)
        assert [one.text for one in found] == [text[one.start : one.end] for one in found]
        windows = max(windows, len(llm.inputs.windows(question, text, 1)))
    assert windows > 3  # long texts are among them


def test_a_question_that_leaves_little_room() -> None:
    """The text is read in windows that overlap by less than usual: each is 5 tokens long."""
    text = "a b c d e f g h i j"
    with pellucid.load(TASKS["bert-answer"], threads=1) as llm:
        windows = [window for _, window in llm.inputs.windows("a " * 56, text, 30)]
        own = ["".join(token.text for token in window if token.sequence == 1) for window in windows]
        assert own == ["abcde", "defgh", "ghij"]
        assert len(llm.answer("a " * 56, text, top=3)) == 3


def test_what_the_goldens_cover() -> None:
    """Texts without an entity, tags of several tokens, and the answer "no answer"."""
    tags = json.loads((TASKS["bert-tag"] / "results.json").read_text("utf-8"))
    assert any(not groups["simple"] for _, groups in tags)
    assert any(len(groups["simple"]) < len(groups["none"]) for _, groups in tags)
    assert any(groups["first"] != groups["max"] for _, groups in tags)
    answers = json.loads((TASKS["bert-answer"] / "results.json").read_text("utf-8"))
    assert any(end == 0 for *_, spans in answers for _, _, end in spans)


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("bert-fill", lambda llm: llm.fill("no mask"), r"the text has no mask: write \[MASK\] where"),
        ("roberta-fill", lambda llm: llm.fill("no mask"), "the text has no mask: write <mask> where"),
        ("bert-fill", lambda llm: llm.fill("[MASK]", top=0), "top=0: "),
        ("bert-fill", lambda llm: llm.classify(["a"]), "makes .* use fill"),
        ("bert-tag", lambda llm: llm.tag("a", "words"), "grouping='words': must be one of none, simple"),
        ("bert-tag", lambda llm: llm.tag(""), "text='': must be a text"),
        ("bert-tag", lambda llm: llm.tag("a " * 70), "72 tokens; the context is 64 tokens: shorten the text$"),
        ("bert-answer", lambda llm: llm.answer("", "a text"), "question='': must be a text"),
        ("bert-answer", lambda llm: llm.answer("what?", "a", longest=0), "longest=0: "),
        (
            "bert-answer",
            lambda llm: llm.answer("a " * 70, "a text"),
            "the question is too long: with special tokens 73 tokens, and the context is 64 tokens: shorten the "
            "question$",
        ),
        ("bert-classify", lambda llm: llm.classify([]), "a list of texts, or pairs of texts that is not empty"),
        ("bert-classify", lambda llm: llm.classify(["a "] * 2 + [""]), "text='': must be a text"),
        ("bert-classify", lambda llm: llm.rerank("a", ["b"]), "ranking needs one label"),
        ("bert-rank", lambda llm: llm.rerank("", ["b"]), "query='': must be a text"),
        ("bert-rank", lambda llm: llm.rerank("a", ["b"], instruction="Find it"), "takes no instruction"),
    ],
)
def test_refusals(name: str, call: Any, words: str) -> None:
    with pellucid.load(TASKS[name], threads=1) as llm, pytest.raises(InvalidRequest, match=words):
        call(llm)
