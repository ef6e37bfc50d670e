"""The page of encoders of every task: what stands behind the blocks, and each stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.page_server import PageServer
from support.page_visit import Visit

import pellucid
from pellucid.testing import random_model
from pellucid.trace import ablate

TEXT = "a cat _ on the mat"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "embed": ("bert", {}),
    "first": ("modernbert", {}),
    "classify": ("bert", {"architectures": ["BertForSequenceClassification"], "num_labels": 3}),
    "tag": ("roberta", {"architectures": ["RobertaForTokenClassification"], "num_labels": 4}),
    "answer": ("electra", {"architectures": ["ElectraForQuestionAnswering"]}),
    "fill": ("modernbert", {"architectures": ["ModernBertForMaskedLM"]}),
}
"""A family and changes of config.json by the name of a model."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    folder = tmp_path_factory.mktemp("encoders")
    for name, (family, metadata) in MODELS.items():
        path = random_model(family, folder / name, kind="safetensors", layers=3, metadata=metadata)
        (path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "_"}))
    served = PageServer(folder, names=[*MODELS], load=lambda name: pellucid.load(folder / name, threads=2))
    yield served
    served.close()


@pytest.mark.parametrize("model", MODELS)
def test_every_stage_of_an_encoder_opens(browser: Any, encoders: PageServer, model: str) -> None:
    visit = Visit(browser, encoders.url)
    visit.choose(model)
    visit.write(TEXT)
    assert visit.made() == 0
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert len(section.locator(".body").inner_text()) > 40, stage
    for measure in visit.page.locator(".measures button").all():
        measure.click()
    assert visit.said == []
    visit.close()


def test_the_formula_of_an_output_layer_has_its_activation(browser: Any, encoders: PageServer) -> None:
    visit = Visit(browser, encoders.url)
    visit.choose("fill")
    visit.write(TEXT)
    visit.go(point="output.0", token=3, dim=2)
    formula = visit.page.locator(".number-card .formula")
    recorded, computed = (float(formula.get_attribute(f"data-{one}")) for one in ("recorded", "computed"))
    assert formula.inner_text().endswith(", then gelu")
    assert abs(recorded - computed) < 1e-3 < abs(recorded)
    visit.close()


@pytest.mark.parametrize("model", ["embed", "first"])
def test_the_vector_of_a_text_is_drawn(browser: Any, encoders: PageServer, model: str) -> None:
    visit = Visit(browser, encoders.url)
    visit.choose(model)
    visit.write(TEXT)
    visit.settle()
    drawn = visit.page.locator(".column.pooled")
    assert "one vector for the text" in (drawn.text_content() or "")
    assert drawn.locator(".strip path").count() > 0
    visit.close()


@pytest.mark.parametrize("model", ["classify", "tag", "answer"])
def test_labels_are_drawn_with_their_scores(browser: Any, encoders: PageServer, model: str) -> None:
    visit = Visit(browser, encoders.url)
    visit.choose(model)
    visit.write(TEXT)
    visit.go(token=2)
    visit.settle()
    found = {
        one.get_attribute("data-label"): float(one.get_attribute("data-score") or "nan")
        for one in visit.page.locator(".column.labels [data-label]").all()
    }
    with pellucid.load(encoders.folder / model, threads=2) as llm:
        (rows,) = llm.encode(llm.inputs.texts([TEXT]))
        logits = rows[0 if model == "classify" else 2].astype(float)
    wanted = np.exp(logits) / np.exp(logits).sum() if model != "answer" else logits
    assert [*found.values()] == sorted(found.values(), reverse=True)
    names = ["an answer begins", "an answer ends"] if model == "answer" else [f"LABEL_{n}" for n in range(len(logits))]
    assert found == {name: pytest.approx(score, rel=1e-4) for name, score in zip(names, wanted)}
    assert visit.said == []
    visit.close()


def test_the_tokens_of_a_mask_are_drawn(browser: Any, encoders: PageServer) -> None:
    visit = Visit(browser, encoders.url)
    visit.choose("fill")
    visit.write(TEXT)
    with pellucid.load(encoders.folder / "fill", threads=2) as llm:
        (tokens,) = llm.fill(TEXT, 4)
        visit.go(token=llm.inputs.sentences([TEXT])[0].index(llm.tokenizer.mask_id))
    visit.settle()
    drawn = visit.page.locator(".column.softmax [data-candidate]").all()[:4]
    assert [int(one.get_attribute("data-candidate") or -1) for one in drawn] == [one.token for one in tokens]
    shares = [float(one.get_attribute("data-probability") or "nan") for one in drawn]
    assert shares == pytest.approx([one.probability for one in tokens], rel=1e-4)
    drawn[1].click()  # opens the number, and draws nothing
    visit.settle()
    assert visit.made() == 0
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize(("model", "words"), [("classify", "The score of LABEL_"), ("fill", "The likeliest token at")])
def test_a_change_says_what_it_does(browser: Any, encoders: PageServer, model: str, words: str) -> None:
    visit = Visit(browser, encoders.url)
    visit.choose(model)
    visit.write(TEXT)
    visit.go(block=1, head=1, token=3)
    visit.open("attention").get_by_role("button", name="take out this head").click()
    visit.settle()
    line = visit.open("changes").locator(".effect").inner_text()
    assert line.startswith(words)
    if model == "classify":
        with pellucid.load(encoders.folder / model, threads=2) as llm:
            (plain,) = llm.classify([TEXT])
            (edited,) = llm.classify([TEXT], edits=[ablate("blocks.1.attention.heads[heads=1]")])
        assert plain.label in line
        assert f"{100 * plain.score:.1f}" in line
        assert edited.scores != plain.scores
    assert visit.said == []
    visit.close()
