"""Notebook displays have no scripts, reports only the page's scripts. Texts of models and users are escaped."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import pellucid
from pellucid.llm import LLM
from pellucid.sample.options import Options
from pellucid.testing import random_model
from pellucid.trace import attribute, head_scores, logit_difference, logit_lens, patch_sweep
from pellucid.trace.explanation import explain
from pellucid.trace.explanation_report import SHOWN, recorded
from pellucid.trace.recorded_run import RecordedRun
from pellucid.util import display

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
    """Parses a page. Refuses unclosed elements and anything that runs."""

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


class Scripts(HTMLParser):
    """Collects the scripts of a report by their types, its styles, and its policy."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.policy = ""
        self.found = dict[str, str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        had = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") or name in ("src", "href") for name in had)
        assert tag not in ("img", "iframe", "object", "link", "base")
        if had.get("http-equiv") == "Content-Security-Policy":
            self.policy = had["content"]
        self.inside = {"script": had.get("type", "text/javascript"), "style": "style"}.get(tag, "")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[self.inside] = self.found.get(self.inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def test_the_report_of_a_hostile_prompt_is_the_page_with_a_run(llm: LLM, tmp_path: Path) -> None:
    found = explain(llm, HOSTILE, max_new_tokens=2, seed=1)
    page = Scripts()
    page.feed(found.html())
    assert set(page.found) == {"importmap", "module", "application/gzip", "style"}
    for kind in ("importmap", "module", "style"):  # nothing else may run
        digest = hashlib.sha256(page.found[kind].encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in page.policy
    assert "default-src 'none'" in page.policy
    assert "unsafe" not in page.policy
    modules = json.loads(page.found["importmap"])["imports"]
    for name, url in modules.items():
        source = base64.b64decode(url.removeprefix("data:text/javascript;base64,")).decode()
        assert '"/web/' not in source, name
        assert set(re.findall(r'from "([^"]+)"', source)) <= set(modules), name
    (tmp_path / "it.run").write_bytes(gzip.decompress(base64.b64decode(page.found["application/gzip"])))
    run = RecordedRun.open(tmp_path / "it.run")
    assert run.question == HOSTILE
    assert [*run.prompt, *run.ids][: len(run.prompt)] == llm.tokenizer.encode(HOSTILE)
    assert run.text == found.text
    assert HOSTILE not in found.html()
    checked(found._repr_html_())
    assert found.as_dict()["text"] == found.text
    assert len(found.pieces) == len(llm.tokenizer.encode(HOSTILE))
    assert len(repr(found).splitlines()) == 1


def test_a_late_step_is_explained(llm: LLM) -> None:
    """After more tokens than a report has: it holds the first of them."""
    found = explain(llm, "to see", step=20, temperature=0, ignore_eos=True)
    run = recorded(found.source, found.prompt)
    assert len(found.pieces) == len(run.prompt) + 19
    assert len(run.ids) == SHOWN < 20
    for name, values in run.items():
        rows = values.shape[1] if name.endswith(".pattern") else len(values)
        assert rows <= len(run.prompt) + SHOWN, name
    early = recorded(explain(llm, "to see", step=SHOWN, temperature=0, ignore_eos=True).source, found.prompt)
    assert run.keys() == early.keys()
    for name, values in early.items():
        np.testing.assert_array_equal(run[name], values, name)


def test_a_report_holds_what_the_run_had(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain(llm, "to see", max_new_tokens=3, temperature=0)
    run = recorded(found.source, found.prompt)
    last = len(run.prompt) - 1
    with llm.trace("**") as trace:
        llm.generate("to see", max_new_tokens=3, temperature=0)
    whole = trace.sequences[0]
    assert np.array_equal(run["blocks.1.attention.pattern"], whole["blocks.1.attention.pattern"])
    assert np.array_equal(run["project.logits"], whole["project.logits"][last:])
    assert run.parts["project.logits"] == {"first": last}
    lengths = np.linalg.norm(whole["blocks.0.residual"].astype(np.float64), axis=1)
    assert np.allclose(run["blocks.0.residual"], lengths, rtol=1e-6)
    asked = {path for path, _, _ in run.answers}
    assert {"/look/tokenize", "/look/lens", "/look/attribution", "/look/neighbours", "/look/pieces"} <= asked
    monkeypatch.setattr("pellucid.trace.explanation_report.MOST_BYTES", 2000)
    short = recorded(found.source, found.prompt)
    assert sum(one.nbytes for one in short.values()) <= 2000
    assert "did not fit" in short.notes[0]
    short.save(tmp_path / "short.run")
    assert RecordedRun.open(tmp_path / "short.run").notes == short.notes


def test_displays_are_html(llm: LLM) -> None:
    with llm.trace("**") as trace:
        made = llm.generate(HOSTILE, max_new_tokens=2)
    shown = [
        trace,
        trace.sequences[0],
        logit_lens(llm, HOSTILE),
        attribute(llm, HOSTILE),
        head_scores(llm, length=8),
        patch_sweep(llm, "a cat", "a dog", logit_difference(llm, 65, 66)),
        llm.plan,
        Options.of(temperature=0.5).chain(),
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
    assert {pattern.shape for pattern in found.patterns} == {(len(found.pieces), len(found.pieces))}


def test_a_run_is_framed_in_a_sandbox(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run = llm.record(HOSTILE, "blocks.*.residual", max_new_tokens=2)
    frame = re.fullmatch(
        r'<iframe title="([^"]*)" sandbox="([^"]*)" srcdoc="([^"]*)" style="[^"]*"></iframe>', run._repr_html_()
    )
    assert frame
    assert html.unescape(frame[3]) == run.html()
    assert "allow-same-origin" not in frame[2].split()
    monkeypatch.setattr(display, "MOST_PAGE", 1000)
    assert re.search(r"has [0-9.]+ MB; a notebook shows at most 0 MB: write html\(\) to a file", run._repr_html_())
    checked(run._repr_html_())
