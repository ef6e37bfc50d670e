"""rerank, classify, fill, tag, answer: tables, JSON, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command import Command
from support.tiny import TASKS

CLASSIFIER, RANKER, FILLER, TAGGER, ANSWERER = (
    str(TASKS[f"bert-{head}"]) for head in ("classify", "rank", "fill", "tag", "answer")
)


def golden(name: str) -> Any:
    return json.loads((TASKS[name] / "results.json").read_text("utf-8"))


def test_classify(command: Command, tmp_path: Path) -> None:
    (text, scores), (other, _) = golden("bert-classify")[1:3]
    file = tmp_path / "texts.txt"
    file.write_text(f"{other}\n\n{text}\n")
    document = command("classify", CLASSIFIER, text, f"@{file}", "--precise", "--json").document
    assert [one["text"] for one in document["texts"]] == [text, other, text]
    assert document["texts"][0]["scores"] == pytest.approx(scores, abs=1e-4)
    assert document["texts"][0] == document["texts"][2]
    lines = command("classify", CLASSIFIER, text, "--top", "2", "--precise").answer.splitlines()
    best = sorted(scores, key=lambda label: -scores[label])[:2]
    assert lines[0].split() == ["text", "label", "score"]
    assert lines[1].startswith(text)
    assert [line.split()[-2] for line in lines[1:]] == best
    assert [float(line.split()[-1]) for line in lines[1:]] == pytest.approx([scores[label] for label in best], abs=2e-4)


def test_rerank(command: Command, tmp_path: Path) -> None:
    query, documents, scores = golden("bert-rank")[0]
    documents, scores = documents[:7], scores[:7]
    order = sorted(range(7), key=lambda index: -scores[index])
    document = command("rerank", RANKER, query, *documents, "--precise", "--json").document
    assert document["query"] == query
    assert [one["index"] for one in document["ranked"]] == order
    assert [one["text"] for one in document["ranked"]] == [documents[index] for index in order]
    table = command("rerank", RANKER, query, *documents, "--precise", "--top", "2").answer.splitlines()
    assert [line.split()[-1] for line in table[1:]] == [str(index + 1) for index in order[:2]]
    assert float(table[1].split()[0]) == pytest.approx(scores[order[0]], abs=2e-4)
    assert "top=8: must be a whole number from 1 to 7" in (
        command("rerank", RANKER, query, *documents, "--top", "8").refusal
    )


def test_rerank_by_vectors(command: Command, encoder: str) -> None:
    ranked = command("rerank", encoder, "a sentence", "another", "a sentence", "--json").document["ranked"]
    assert ranked[0] == {"index": 1, "score": pytest.approx(1), "text": "a sentence"}


def test_fill(command: Command) -> None:
    text, masks = next(row for row in golden("bert-fill") if len(row[1]) == 2)
    document = command("fill", FILLER, text, "--precise", "--json").document
    assert [[one["token"] for one in own] for own in document["masks"]] == [
        [token for token, *_ in own] for own in masks
    ]
    assert set(document["masks"][0][0]) == {"token", "text", "probability", "filled"}
    rows = command("fill", FILLER, text, "--precise", "--top", "1").answer.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [
        [str(number), repr(own[0][1])] for number, own in enumerate(masks, 1)
    ]


def test_tag(command: Command, tmp_path: Path) -> None:
    text, groups = next(row for row in golden("bert-tag") if len(row[1]["simple"]) > 1)
    file = tmp_path / "text.txt"
    file.write_text(text)
    for options, grouping in (((), "simple"), (("--grouping", "none"), "none")):
        document = command("tag", TAGGER, f"@{file}", *options, "--precise", "--json").document
        assert document["text"] == text
        assert [(one["label"], one["start"], one["end"]) for one in document["tags"]] == [
            (label, start, end) for label, _, start, end in groups[grouping]
        ]
    label, _, start, end = groups["simple"][0]
    row = command("tag", TAGGER, text, "--precise").answer.splitlines()[1].split()
    assert [row[0], row[2]] == [label, f"{start}:{end}"]
    empty = next(text for text, groups in golden("bert-tag") if not groups["simple"])
    assert command("tag", TAGGER, empty, "--precise", "--json").document["tags"] == []


def test_answer(command: Command) -> None:
    question, text, _, spans = next(row for row in golden("bert-answer") if not row[2])
    given = ("answer", ANSWERER, question, text, "--precise", "--top", "3")
    answers = command(*given, "--json").document["answers"]
    assert [(one["start"], one["end"]) for one in answers] == [(start, end) for _, start, end in spans]
    rows = command(*given).answer.splitlines()[1:]
    assert [row.split()[1] for row in rows] == [f"{start}:{end}" for _, start, end in spans]
    shortest = command(*given, "--longest", "1", "--json").document["answers"]
    assert all(" " not in one["text"] for one in shortest)
    question, text, _, _ = next(row for row in golden("bert-answer") if row[2] and [0, 0] in [s[1:] for s in row[3]])
    rows = command("answer", ANSWERER, question, text, "--precise", "--top", "3", "--unanswerable").answer
    assert "no answer" in rows


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("classify", "bert-fill", "a"), "use pellucid fill"),
        (("rerank", "bert-tag", "a", "b"), "use pellucid tag"),
        (("rerank", "bert-classify", "a", "b"), "has the labels LABEL_0, LABEL_1, LABEL_2: ranking needs one label"),
        (("fill", "bert-classify", "a [MASK]"), "use pellucid classify"),
        (("tag", "bert-answer", "a"), "use pellucid answer"),
        (("answer", "bert-tag", "a", "b"), "use pellucid tag"),
        (("fill", "bert-fill", "a mask"), "the text has no mask: write [MASK] where a token is to be filled in"),
        (("fill", "bert-fill", "[MASK]", "--top", "0"), "top=0: must be"),
        (("fill", "bert-fill", ""), "text='': must be a text"),
        (("classify", "bert-classify", "a", ""), "text='': must be a text"),
        (("classify", "bert-classify", "a", "--top", "0"), "top=0: must be"),
        (("classify", "bert-classify", "a", "--top", "x"), "top='x': must be"),
        (("classify", "bert-classify", "a " * 70), "the text is too long: 72 tokens; the context is 64 tokens"),
        (("classify", "bert-classify", "@nowhere.txt"), "nowhere.txt: No such file"),
        (("rerank", "bert-rank", "", "b"), "query='': must be a text"),
        (("rerank", "bert-rank", "a", ""), "text='': must be a text"),
        (("tag", "bert-tag", ""), "text='': must be a text"),
        (("tag", "bert-tag", "a", "--grouping", "word"), "grouping='word': must be one of none, simple, first"),
        (("answer", "bert-answer", "", "a"), "question='': must be a text"),
        (("answer", "bert-answer", "a", ""), "text='': must be a text"),
        (("answer", "bert-answer", "a", "b", "--top", "0"), "top=0: must be"),
        (("answer", "bert-answer", "a " * 70, "b"), "the question is too long: with special tokens 73 tokens"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_refusals(command: Command, given: tuple[str, ...], words: str) -> None:
    name, model, *texts = given
    assert words in command(name, str(TASKS[model]), *texts).refusal


def test_an_empty_file_of_texts(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("\n\n")
    for given in (("classify", CLASSIFIER), ("rerank", RANKER, "a query")):
        assert "empty.txt: has no texts: write a text in each line" in command(*given, f"@{file}").refusal
