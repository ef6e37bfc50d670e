"""Displays in notebooks and reports: one page without scripts, in which no text of a model or a user is HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

import pellucid
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import attribute, head_scores, logit_lens, patch_sweep
from pellucid.trace.explanation import explain

HOSTILE = "<script>alert('x')</script> & \"q\" \x1b[31m"
VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("displays") / "llama.gguf"
    random_model("llama", path, layers=2, context=256)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


class Checked(HTMLParser):
    """Reads a page, and refuses what is not closed or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checked:
    found = Checked()
    found.feed(page)
    found.close()
    assert not found.open
    assert not found.tags & {"script", "img", "link", "iframe", "object"}
    assert "\x1b" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    return found


def test_the_report_of_a_hostile_prompt_is_a_page(llm: LLM) -> None:
    found = explain(llm, HOSTILE, max_new_tokens=2, seed=1)
    page = checked(found.html())
    assert {"html", "body", "table", "section"} <= page.tags
    checked(found._repr_html_())
    assert found.as_dict()["text"] == found.text
    assert len(found.pieces) == len(llm.tokenizer.encode(HOSTILE))
    assert len(repr(found).splitlines()) == 1


def test_displays_are_html(llm: LLM) -> None:
    with llm.trace("**") as trace:
        made = llm.generate(HOSTILE, max_new_tokens=2)
    shown = [
        trace,
        trace.sequences[0],
        logit_lens(llm, HOSTILE),
        attribute(llm, HOSTILE),
        head_scores(llm, length=8),
        patch_sweep(llm, "a cat", "a dog", 65, 66),
        llm.plan,
        pellucid.llm.Options.of(temperature=0.5).chain(),
    ]
    for one in shown:
        page = checked(one._repr_html_())
        assert "table" in page.tags
        assert len(repr(one).splitlines()) == 1 or one is shown[-1]
    assert made.text is not None


def test_an_explanation_says_what_the_model_did(llm: LLM) -> None:
    plain = llm.generate("to see", max_new_tokens=3, temperature=0.9, seed=3)
    found = explain(llm, "to see", max_new_tokens=3, temperature=0.9, seed=3)
    assert found.text == plain.text
    assert [trace.token for _, trace in found.tokens] == plain.ids
    chosen = next(one for one in found.alternatives if one.id == plain.ids[0])
    assert chosen.probability == pytest.approx(found.tokens[0][1].probability)
    assert chosen.final_probability == pytest.approx(found.tokens[0][1].final_probability)
    assert found.layers.ids[-1, 0, 0] == max(found.alternatives, key=lambda one: one.logit).id
    assert found.attribution is not None
    assert found.attribution.total == pytest.approx(chosen.logit, abs=1e-4)
    assert found.patterns.shape[1:] == (len(found.pieces), len(found.pieces))
