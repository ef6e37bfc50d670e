"""The page in a real browser: every stage of several models, branches, edits, other clients' requests, hostile texts.

Needs Playwright and a Chromium (`make test-web` installs both).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import openai
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-web installs Playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-web installs axe")

from support.browser import ARGUMENTS, CHROMIUM, MAIN, ended, fill, run_form  # noqa: E402
from support.hostile_runs import PATTERN, SHAPES, run_bytes  # noqa: E402
from support.sampling import Words  # noqa: E402
from support.served import Served  # noqa: E402

import pellucid  # noqa: E402
from pellucid.plan.pipeline_stages import Stage  # noqa: E402
from pellucid.sample.options import Options  # noqa: E402
from pellucid.serve.guard import AccessRules  # noqa: E402
from pellucid.testing import random_model  # noqa: E402
from pellucid.trace import attribute, logit_lens, neighbours  # noqa: E402
from pellucid.trace.explanation import explain  # noqa: E402

pytestmark = pytest.mark.model
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
MODELS = ("smollm2", "minilm", "mixture", "hybrid")
OTHERS = ("learned", "alibi", "windows")  # positions of other kinds
SCREENS = [("wide", "light"), ("narrow", "dark"), ("wide", "dark"), ("narrow", "light")]
HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> \u202e\x07\x1b[31m & &amp; {{7*7}} `${1}`"
SECONDS = 60_000


class PageServer(Served):
    """A server of the models that the page shows."""

    def __init__(self, folder: Path, rules: AccessRules | None = None) -> None:
        super().__init__(folder, rules or AccessRules())
        self.models.names[:] = (*MODELS, *OTHERS)
        self.models._load = lambda name: pellucid.load(
            folder / f"{name}.gguf" if (folder / f"{name}.gguf").exists() else name, threads=2
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    random_model("qwen2moe", made / "mixture.gguf", layers=3, context=512)
    random_model("qwen3next", made / "hybrid.gguf", context=512)
    random_model("gpt2", made / "learned.gguf", context=512)
    random_model("bloom", made / "alibi.gguf", context=512)
    random_model("gemma4", made / "windows.gguf", layers=6, context=512)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[PageServer]:
    made = PageServer(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


class Visit:
    """An open page that collects its console messages."""

    def __init__(
        self,
        browser: Any,
        url: str,
        size: str = "wide",
        scheme: str = "light",
        wait: str = "textarea, .error",
    ) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page, self.said = self.context.new_page(), list[str]()
        self.page.on(
            "console", lambda one: self.said.append(one.text) if one.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(url)
        load = self.page.get_by_role("button", name="Load it")
        self.page.locator(wait).or_(load).first.wait_for(timeout=SECONDS)
        if load.count():
            load.click()
            self.page.locator(wait).first.wait_for(timeout=SECONDS)

    def choose(self, model: str) -> None:
        select = self.page.locator("header select")
        if select.input_value() != model:
            # Until the answer is there, the page may still show the form of the model before, and drop what is typed.
            with self.page.expect_response(
                lambda one: one.url.endswith(f"/look/models/{model}"), timeout=SECONDS
            ):
                select.select_option(model)
        self.page.locator("textarea").wait_for(timeout=SECONDS)

    def write(self, text: str, tokens: int = 12, **options: Any) -> None:
        fill(self.page, text, tokens=tokens, **options)
        run_form(self.page, SECONDS)

    def make_again(self) -> None:
        """Click on the button that generates the text of the page's address."""
        self.page.get_by_role("button", name="Make it again").click()

    def open(self, stage: str) -> Any:
        section = self.page.locator(f"#stage-{stage}")
        if section.locator("h3 button").get_attribute("aria-expanded") == "false":
            section.locator("h3 button").click()
        section.locator(".body").wait_for()
        for waiting in section.get_by_text("Reading the values …").all():
            waiting.wait_for(state="detached", timeout=SECONDS)
        return section

    def stages(self) -> list[str]:
        return [one.get_attribute("id").removeprefix("stage-") for one in self.page.locator(".panel").all()]

    def answers(self) -> dict[str, Any]:
        plain = "(key, one) => (ArrayBuffer.isView(one) ? Array.from(one) : one)"
        text: str = self.page.evaluate(
            f"() => JSON.stringify(Object.fromEntries(globalThis.pellucid.answers), {plain})"
        )
        found: dict[str, Any] = json.loads(text)
        return found

    def close(self) -> None:
        self.context.close()


def serious(page: Any) -> list[str]:
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['target']} {one['nodes'][0]['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def compared(changes: Any) -> list[str]:
    """Probability of the likeliest first token without and with the edits, as text of the page."""
    changes.get_by_role("button", name="Compare with and without").click(timeout=SECONDS)
    changes.locator(".two").wait_for(timeout=SECONDS)
    return [one.locator(".num").first.inner_text() for one in changes.locator(".two > div").all()]


@pytest.mark.parametrize(
    ("model", "size", "scheme"),
    [(model, *screen) for model in MODELS for screen in SCREENS[: 4 if model == "smollm2" else 2]],
)
def test_every_stage_opens(browser: Any, server: PageServer, model: str, size: str, scheme: str) -> None:
    visit = Visit(browser, server.url, size, scheme)
    visit.choose(model)
    visit.write("The capital of France is")
    if model != "minilm":
        assert visit.page.locator(".text .token").count() >= 1
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert len(section.locator(".body").inner_text()) > 40
        wide = visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert wide, f"{stage}: the page is wider than the screen"
        assert serious(visit.page) == [], stage
    assert visit.said == []
    visit.close()


def test_every_stage_opens_on_replicas(browser: Any, folder: Path) -> None:
    """Values come from a replica, for the stages of the page and for its list of requests."""
    pytest.importorskip("zmq", reason="pip install 'pellucid[cluster]'")
    from support.replicas import ReplicaProcess, loads_from

    name = "mixture.gguf"
    with ReplicaProcess(folder / name, "one") as replica:
        served = PageServer(folder)
        served.models.names[:], served.models._load = [name], loads_from(folder, {name: [replica.address]})
        visit = Visit(browser, served.url)
        visit.write("The capital of France is")
        for stage in visit.stages():
            section = visit.open(stage)
            assert section.locator(".error").all_text_contents() == [], stage
            assert len(section.locator(".body").inner_text()) > 40
        assert visit.said == []
        visit.close()
        served.close()


def test_the_page_opens_where_values_cannot_be_watched(browser: Any, folder: Path) -> None:
    """On a model that is divided over several machines, the page shows a notice and can still generate."""

    def load(name: str) -> Any:
        llm = pellucid.load(folder / name, threads=2)
        llm.runner.stage = Stage(llm.plan, 0, range(3), (), ())
        return llm

    served = PageServer(folder)
    served.models.names[:], served.models._load = ["mixture.gguf"], load
    visit = Visit(browser, served.url)
    assert "several machines" in visit.page.locator(".stages > .note").inner_text()
    visit.write("The capital of France is")
    assert visit.page.locator(".text .token").count() >= 1
    section = visit.open("attention")
    section.locator(".error").first.wait_for(timeout=SECONDS)
    assert "cannot be watched" in section.locator(".error").first.inner_text()
    visit.close()
    served.close()


def test_the_page_shows_what_python_records(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The animal didn't cross the street because it was too tired", tokens=8, temperature=0)
    for stage in (
        "attention",
        "blocks",
        "embeddings",
        "feedforward",
        "lens",
        "attribution",
        "sampling",
        "beams",
    ):
        visit.open(stage)
    answers = visit.answers()
    visit.close()

    def answer_to(*parts: str) -> Any:
        return next(one for key, one in answers.items() if all(part in key for part in parts))

    answer = answer_to("attention.pattern")
    shown = answer["arrays"]["blocks.0.attention.pattern"]
    with pellucid.load("smollm2", threads=2) as llm:
        ids = answer["prompt"]
        points = ["blocks.0.attention.pattern", "blocks.*.residual", "blocks.*.attention.output", "embed"]
        points += ["blocks.0.feedforward.hidden", "project.logits"]
        with llm.trace(*points) as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0)
        own = trace.sequences[0]
        wanted = own["blocks.0.attention.pattern"]
        assert shown["shape"] == list(wanted.shape)
        assert np.array_equal(np.array(shown["values"], np.float32).reshape(wanted.shape), wanted)
        norms = answer_to("norms", "blocks.*.residual")["arrays"]
        for name in ("blocks.29.residual", "blocks.7.attention.output"):
            assert np.allclose(
                norms[name]["values"], np.linalg.norm(own[name].astype(float), axis=1), rtol=1e-6
            )
        strips = answer_to("embed[dims")["arrays"]["embed"]
        assert np.array_equal(np.float32(strips["values"]).reshape(strips["shape"]), own["embed"][:40, :192])
        hidden = answer_to("feedforward.hidden")["arrays"]["blocks.0.feedforward.hidden"]
        assert np.array_equal(np.float32(hidden["values"]), own["blocks.0.feedforward.hidden"][-1])
        logits = answer_to("project.logits")["arrays"]["project.logits"]
        assert np.array_equal(np.float32(logits["values"]), own["project.logits"][-1])
        lens = answer_to("/look/lens")
        assert lens == json.loads(json.dumps(logit_lens(llm, ids, top=3).as_dict()))
        attributed = answer_to("/look/attribution")
        again = attribute(llm, ids[:-1], ids[-1]).as_dict()
        assert attributed == json.loads(json.dumps(again))
        found = llm.beam_search(ids[:-8], num_beams=3, max_new_tokens=8)
        assert answer_to("/look/beams")["texts"][0]["text"] == found.text
        made = llm.generate(
            "The animal didn't cross the street because it was too tired", max_new_tokens=8, temperature=0
        )
        assert ids[-8:] == made.ids


def test_branches_and_alternatives(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=10, temperature=0)
    before = visit.page.locator(".text").first.inner_text()
    visit.page.locator(".text .token").nth(0).click()
    visit.page.locator(".alternatives button:has-text('branch')").first.click()
    ended(visit.page, SECONDS)
    visit.page.locator(".branches").wait_for(timeout=SECONDS)
    assert visit.page.locator(".branches li").count() == 2
    assert visit.page.locator(".text").first.inner_text() != before
    branched = visit.page.locator(".text").first.inner_text()
    visit.page.locator(".text .token").nth(5).click()  # a branch of the branch
    visit.page.locator(".alternatives button:has-text('branch')").nth(1).click()
    ended(visit.page, SECONDS)
    twice = visit.page.locator(".text").first.inner_text()
    visit.page.locator(".branches button").first.click()
    assert visit.page.locator(".text").first.inner_text() == before
    visit.open("sampling").get_by_label("top-k").fill("7")
    visit.page.locator(".text .token").nth(3).click()
    visit.page.wait_for_timeout(800)
    address, branches = visit.page.url, visit.page.locator(".branches li").all_inner_texts()
    assert len(branches) == 3
    visit.close()
    again = Visit(browser, address)
    again.make_again()
    again.page.locator(".branches li").nth(2).wait_for(timeout=SECONDS)
    ended(again.page, SECONDS)
    assert again.page.locator(".branches li").all_inner_texts() == branches
    assert again.page.locator(".text").first.inner_text() == before, "the address makes the same view"
    assert again.page.locator(".text .token").nth(3).get_attribute("aria-pressed") == "true"
    assert again.page.locator("#stage-sampling").get_by_label("top-k").input_value() == "7"
    for button, text in zip(again.page.locator(".branches button").all(), (before, branched, twice)):
        button.click()
        assert again.page.locator(".text").first.inner_text() == text
    assert again.said == []
    again.close()


def test_an_address_of_another_text_says_so(browser: Any, server: PageServer) -> None:
    made = [
        {"from": 0, "token": None, "count": 3},
        {"from": 1, "token": 49151, "count": 2},
        {"from": 1 << 40, "token": -7, "count": "x"},
    ]
    address = {
        "model": "smollm2",
        "stage": "<b>",
        "at": {"block": -9, "head": 1e99},
        "made": made,
        "leaf": 99,
    }
    visit = Visit(browser, f"{server.url}/#{quote(json.dumps(address))}")
    visit.make_again()
    visit.page.get_by_text("The address is of another text").wait_for(timeout=SECONDS)
    assert visit.page.locator(".text .token").count() == 3
    visit.open("attention")
    assert visit.said == []
    visit.close()
    for hash in ("#%", "#null", "#[]", f"#{quote(json.dumps({'model': 'nobody', 'made': 7, 'edits': 'x'}))}"):
        other = Visit(browser, f"{server.url}/{hash}")
        assert other.page.locator("#prompt").input_value() != ""
        other.close()


def test_an_address_starts_nothing_without_a_click(browser: Any, server: PageServer) -> None:
    """Any site can open the page: the page requests only names, and the site cannot access its window."""
    made = [{"from": 0, "token": None, "count": 3}]
    at = {"form": {"text": "some words"}, "stage": "beams", "made": made, "leaf": 1}
    Visit(browser, server.url).close()  # the first model is in memory
    for model, is_loaded in (("smollm2", True), ("learned", False)):
        server.models._loaded.pop(model if not is_loaded else "", None)
        context = browser.new_context()
        site, asked = context.new_page(), list[tuple[str, str]]()
        context.on(
            "request", lambda one, asked=asked: asked.append((one.method, one.url.removeprefix(server.url)))
        )
        with context.expect_page() as opened:
            site.evaluate(
                "(url) => { window.opened = open(url); }",
                f"{server.url}/#{quote(json.dumps({'model': model, **at}))}",
            )
        page = opened.value
        page.get_by_role("button", name="Make it again" if is_loaded else "Load it").wait_for(timeout=SECONDS)
        page.wait_for_timeout(1000)
        assert {method for method, _ in asked} == {"GET"}
        assert (f"/look/models/{model}" in [path for _, path in asked]) == is_loaded
        assert page.evaluate("window.opener") is None
        assert site.evaluate("window.opened.closed")
        if not is_loaded:
            page.get_by_role("button", name="Load it").click()
        page.get_by_role("button", name="Make it again").click()
        page.locator(".text .token").first.wait_for(timeout=SECONDS)
        assert ("POST", "/look/generate") in asked
        context.close()


def test_the_keyboard_reaches_everything(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=12, temperature=0)
    page = visit.page
    tokens = page.locator(".text .token")
    assert tokens.count() == 12
    assert page.locator(".text .token[tabindex='0']").count() == 1
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert tokens.nth(10).evaluate("(one) => one === document.activeElement && one.tabIndex === 0")
    page.keyboard.press("Enter")
    assert tokens.nth(10).get_attribute("aria-pressed") == "true"
    section = visit.open("attention")
    matrix = section.get_by_role("slider", name="attention pattern of block 0, head 0")
    matrix.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert matrix.get_attribute("aria-valuenow") == "1"
    assert "capital" in (matrix.get_attribute("aria-valuetext") or "")
    assert section.locator(".arcs .token[aria-pressed='true']").inner_text() == "·capital"
    assert section.locator(".arcs .token[tabindex='0']").count() == 1
    flow = visit.open("blocks").get_by_role("slider")
    flow.focus()
    page.keyboard.press("End")
    assert flow.get_attribute("aria-valuenow") == "29"
    assert serious(page) == []
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("model", OTHERS)
def test_other_positions_have_curves(browser: Any, server: PageServer, model: str) -> None:
    visit = Visit(browser, server.url)
    visit.choose(model)
    visit.write("a text of some words", tokens=3)
    section = visit.open("positions")
    named = section.locator(".legend li").all_inner_texts()
    said = {"learned": "component", "alibi": "per token", "windows": "cosine"}[model]
    assert len(named) >= 2
    assert all(said in one for one in named)
    assert visit.said == []
    visit.close()


def test_every_table_of_angles_is_shown_with_its_blocks(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("windows")
    visit.write("near and far", tokens=3, temperature=0)
    section = visit.open("positions")
    assert section.locator("canvas").count() == 2
    titles = section.locator("h4").all_inner_texts()
    blocks = [int(one) for title in titles for one in title.removeprefix("Blocks ").split(", ")]
    assert len(titles) == 2
    assert sorted(blocks) == list(range(6))
    assert visit.said == []
    visit.close()


def test_characters_of_several_tokens_are_seen(browser: Any, server: PageServer) -> None:
    text = "中国 🦙 ꙮ"
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write(text, tokens=3, temperature=0)
    assert visit.page.locator(".text .prompt").inner_text() == text
    labels = visit.open("embeddings").locator(".tokens .token").all_inner_texts()
    assert labels[:6] == ["中", "国", "‥", "·🦙", "‥", "‥"]
    visit.page.locator("#stage-embeddings .tokens .token").nth(2).click()
    with pellucid.load("smollm2", threads=2) as llm:
        part = llm.tokenizer.encode(text)[2]
        expected = [f"{found} {cosine:.3f}" for found, _, cosine in neighbours(llm, part, 10)]
    near = visit.page.locator("#stage-embeddings .near li")
    near.first.filter(has_text=expected[0].split()[0]).wait_for(timeout=SECONDS)
    assert [one.split()[-1] for one in near.all_inner_texts()] == [one.split()[-1] for one in expected]
    for stage in ("lens", "tokens", "attention"):
        section = visit.open(stage)
        assert "�" not in section.inner_text()
        assert "中" in section.inner_text()
    assert visit.said == []
    visit.close()


def test_what_a_head_looks_at(browser: Any, server: PageServer) -> None:
    text = "The animal didn't cross the street because it was too tired"
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write(text, tokens=2, temperature=0)
    section = visit.open("attention")
    section.get_by_label("block", exact=True).select_option("13")
    section.get_by_label("head", exact=True).fill("8")
    section.locator(".arcs .token", has_text="·it").click()
    section.get_by_text("What ·it looks at").wait_for()
    listed = [one.split() for one in section.locator("ol.near li").all_inner_texts()]
    drawn = section.locator(".arcs canvas").evaluate(
        "(one) => one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some((x) => x)"
    )
    assert drawn
    visit.close()
    with pellucid.load("smollm2", threads=2) as llm:
        with llm.trace("blocks.13.attention.pattern[heads=8]") as trace:
            made = llm.generate(text, max_new_tokens=3, temperature=0)
        assert made.ids
        at = trace.sequences[0].pieces.index(" it")
        row = trace.sequences[0]["blocks.13.attention.pattern"][0, at]
    assert [int(one[0]) for one in listed[:3]] == np.argsort(-row, kind="stable")[:3].tolist()
    assert abs(float(listed[0][2]) - 100 * float(row.max())) < 0.06


def test_a_long_text_is_pooled(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.write("a long text " * 30, tokens=2)
    section = visit.open("attention")
    section.get_by_text("looks at", exact=False).first.wait_for(timeout=SECONDS)
    section.locator("ol.near li").first.wait_for(timeout=SECONDS)
    (found,) = (one for key, one in visit.answers().items() if '"pool":168' in key)
    count, arrays = len(found["prompt"]), found["arrays"]
    assert count > 256
    assert arrays["heads"]["shape"][1:] == [-(-count // (-(-count // 168)))] * 2
    assert arrays["rows"]["shape"][::2] == [1, count]
    asked = len(visit.answers())
    matrix = section.get_by_role("slider", name="attention pattern")
    matrix.focus()
    before = matrix.get_attribute("aria-valuetext")
    visit.page.keyboard.press("ArrowUp")
    visit.page.wait_for_timeout(300)
    assert matrix.get_attribute("aria-valuetext") != before
    assert len(visit.answers()) == asked, "the rows beside the chosen one have come with it"
    for stage in visit.stages():
        assert visit.open(stage).locator(".error").all_text_contents() == [], stage
    assert visit.said == []
    visit.close()


def test_a_report_is_the_page_without_a_server(browser: Any, tmp_path: Path) -> None:
    with pellucid.load("smollm2", threads=2) as llm:
        found = explain(llm, HOSTILE, max_new_tokens=3, temperature=0)
        (tmp_path / "report.html").write_text(found.html(), encoding="utf-8")
    visit, asked = Visit(browser, "about:blank", wait="html"), list[str]()
    visit.page.on("request", lambda one: asked.append(one.url) if not one.url.startswith("data:") else None)
    visit.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    visit.page.goto((tmp_path / "report.html").as_uri())
    visit.page.locator(".text").first.wait_for(timeout=SECONDS)
    wanted = {
        "tokens",
        "embeddings",
        "positions",
        "blocks",
        "attention",
        "feedforward",
        "lens",
        "attribution",
    }
    assert wanted | {"sampling", "detokenizer"} == set(visit.stages())
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert len(section.locator(".body").inner_text()) > 40
        assert serious(visit.page) == [], stage
    assert [one.removeprefix("file://") for one in asked] == [str(tmp_path / "report.html")]
    best = visit.open("sampling").locator(".bars tbody tr").first
    assert "#" not in best.locator("th").inner_text()
    assert visit.said == []
    visit.close()


def test_a_head_is_ablated_and_the_texts_compared(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=6, temperature=0)
    section = visit.open("attention")
    section.get_by_role("button", name="ablate this head").click()
    changes = visit.open("changes")
    plain, changed = compared(changes)
    assert plain != changed
    changes.get_by_role("button", name="take back").click()
    assert "Nothing is changed" in changes.inner_text()
    assert visit.said == []
    visit.close()


def test_sliders_move_the_bars(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=2)
    section = visit.open("sampling")
    first = section.locator(".bars tbody tr").first
    first.wait_for(timeout=SECONDS)
    before = first.inner_text()
    section.get_by_label("temperature").fill("0")
    assert "100 %" in first.inner_text()
    assert first.inner_text() != before
    section.get_by_label("top-k").fill("3")
    section.get_by_label("temperature").fill("1")
    section.get_by_label("top-p").fill("1")
    assert "3 of 49,152 tokens can be drawn" in section.inner_text()
    visit.close()


def test_the_sliders_chain_is_the_one_of_python(browser: Any, server: PageServer) -> None:
    """Also for rows without a token and for equal logits."""
    visit, rng, size = Visit(browser, server.url), np.random.default_rng(5), 60
    for temperature, top_k, top_p in (
        (0.7, 0, 1.0),
        (1.3, 9, 0.9),
        (0.2, 40, 0.5),
        (1.0, 3, 1.0),
        (0.0, 40, 0.9),
    ):
        logits = rng.normal(0, 3, 64).round(1).astype(np.float32)
        how = {"temperature": temperature, "topK": top_k, "topP": top_p}
        code = (
            "async ([logits, size, how]) => (await import('/web/panels/sampling.js'))"
            ".chain(Float32Array.from(logits), size, how)"
        )
        rows = visit.page.evaluate(code, [logits.tolist(), size, how])
        options = Options.of(temperature=temperature, top_k=top_k, top_p=top_p, min_p=0, seed=1)
        draw = options.chain().start(Words(size), []).sample(logits)
        tokens = [one["token"] for one in rows]
        assert tokens == np.argsort(-logits[:size], kind="stable").tolist()
        plain = draw.logits.probabilities()[tokens]
        assert np.allclose([one["plain"] for one in rows], plain, rtol=1e-5)
        left = dict(zip(draw.candidates.ids_at().tolist(), draw.candidates.probabilities()))
        kept = {one["token"]: one["last"] for one in rows if one["last"] > 0}
        assert kept == {draw.token: 1} if not temperature else kept.keys() == left.keys()
        if temperature:
            assert np.allclose([left[token] for token in kept], list(kept.values()), rtol=1e-5)
    visit.close()


def test_hostile_texts_stay_texts(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    visit.write(HOSTILE)
    for stage in visit.stages():
        visit.open(stage)
    assert visit.page.locator("#app img, #app script, #app iframe").count() == 0
    text = visit.page.locator(".text .prompt").inner_text()
    assert "<img src=x onerror=alert(1)>" in text
    assert "\u202e" not in text
    assert visit.said == []
    visit.close()


def test_requests_of_other_clients_are_watched(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    section = visit.open("live")

    def other() -> None:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        client.completions.create(
            model="smollm2", prompt="Once upon a time", max_tokens=1500, extra_body={"ignore_eos": True}
        )

    thread = threading.Thread(target=other)
    thread.start()
    section.get_by_role("button", name="attach").click(timeout=SECONDS)
    section.locator(".watched canvas").wait_for(timeout=SECONDS)
    assert section.locator(".watched .error").count() == 0
    assert len(section.locator(".watched .text").inner_text()) > 4
    thread.join()
    section.get_by_text("has ended").wait_for(timeout=SECONDS)
    assert visit.said == []
    visit.close()


def test_a_key_is_asked_for(browser: Any, folder: Path) -> None:
    server = PageServer(folder, AccessRules(keys=["secret"]))
    visit = Visit(browser, server.url)
    assert "key is needed" in visit.page.locator(".error").inner_text()
    visit.page.get_by_label("Key").fill("secret")
    visit.page.get_by_role("button", name="Use this key").click()
    visit.page.locator("textarea").wait_for(timeout=SECONDS)
    server.close()
    visit.page.locator(MAIN).click()
    visit.page.get_by_text("The server does not answer").wait_for(timeout=SECONDS)
    visit.close()


def test_a_recorded_run_opens_without_a_model(browser: Any, server: PageServer, tmp_path: Path) -> None:
    points = (
        *(
            "embed",
            "position.angles",
            "blocks.*.residual",
            "blocks.*.attention.output",
            "blocks.*.attention.pattern",
        ),
        *("blocks.*.feedforward.hidden", "project.logits", "sample.probability"),
    )
    with pellucid.load("smollm2", threads=2) as llm:
        run = llm.record("The capital of France is", *points, max_new_tokens=5, temperature=0)
    run.save(tmp_path / "paris.run")
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.write("a text that stays", tokens=4)
    before = visit.page.locator(".text").first.inner_text()
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "paris.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for()
    assert "".join(run.pieces) in visit.page.locator(".text").first.inner_text().replace("⏎", "")
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert serious(visit.page) == [], stage
    assert {"tokens", "embeddings", "positions", "blocks", "attention", "feedforward", "sampling"} <= set(
        visit.stages()
    )
    logits = run["project.logits"][-1]
    best = visit.open("sampling").locator(".bars tbody tr").first.locator(".num").first.inner_text()
    assert abs(float(best) - float(logits.max())) < 0.01
    (tmp_path / "no.run").write_bytes(b"nothing of a run")
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "no.run")
    visit.page.get_by_text("no recorded run").wait_for()
    visit.page.get_by_role("button", name="close the file").click()
    visit.page.locator("textarea").wait_for(timeout=SECONDS)
    assert visit.page.locator(".text").first.inner_text() == before
    assert visit.page.locator("header select").input_value() == "mixture"
    assert visit.said == []
    visit.close()


def test_runs_of_absurd_sizes_do_not_hold_the_page(browser: Any, server: PageServer, tmp_path: Path) -> None:
    many = [{"id": 5, "parent": 5, "token": 1, "piece": "x", "score": 0, "state": "running"}] * 40
    tree = [{"id": 5, "parent": 0, "token": 1, "piece": "x", "score": 0, "state": "running"}, *many]
    refused = {
        **{name: run_bytes({point: ("F32", shape)}) for name, (point, shape) in SHAPES.items()},
        "1,000,000 heads": run_bytes({PATTERN: ("F32", [1_000_000, 1, 1])}),
        "a part of many heads": run_bytes(
            {PATTERN: ("F32", [1, 3, 3])}, parts={PATTERN: {"heads": [900_000]}}
        ),
        "arrays of the same bytes": run_bytes(
            {f"blocks.{n}.residual": ("F32", [3, 100_000]) for n in range(500)}, overlap=True
        ),
        "a long answer": run_bytes({}, answers=[["/look/lens", {}, {"layers": ["x"] * 100_000}]]),
        "many long answers": run_bytes({}, answers=[["/look/lens", {}, [[0] * 8000] * 200]]),
        "a long list of steps": run_bytes({}, chain=[{"name": "x"}] * 5000),
        "many notes": run_bytes({}, notes=["x"] * 5000),
        "many tokens": run_bytes({}, ids=[3] * 200_000, pieces=["a"] * 200_002),
    }
    fine = {
        "a circle of beams": run_bytes({}, answers=[["/look/beams", {}, {"texts": [], "tree": tree}]]),
        "many slopes": run_bytes({}, shape={"position": "alibi", "slopes": [0.5] * 7000, "width": 1e15}),
        "empty arrays": run_bytes({PATTERN: ("F32", [4, 0, 0]), "embed": ("F32", [0, 64])}),
        "many experts": run_bytes({
            "blocks.0.feedforward.router": ("F32", [1, 8]), "blocks.0.feedforward.experts": ("I32", [1, 900_000]),
            "blocks.0.feedforward.expert_weights": ("F32", [1, 900_000]),
        }),
    }  # fmt: skip
    visit = Visit(browser, server.url)
    for name, content in {**refused, **fine}.items():
        path = tmp_path / f"{name}.run"
        path.write_bytes(content)
        visit.page.locator("input[type=file]").set_input_files(path)
        if name in refused:
            error = visit.page.get_by_text(f"{name}.run", exact=False).and_(visit.page.locator(".error"))
            error.first.wait_for(timeout=10_000)
            continue
        visit.page.locator(".facts", has_text=f"{name}.run").wait_for(timeout=10_000)
        for stage in visit.stages():
            visit.open(stage)
        assert visit.page.evaluate("1 + 1") == 2
    visit.close()


def test_a_run_of_parts_is_shown_as_these_parts(browser: Any, server: PageServer, tmp_path: Path) -> None:
    points = (
        "embed[tokens=2:]",
        "blocks.*.residual[tokens=2:]",
        "blocks.0.attention.pattern[heads=1,3; tokens=2:]",
    )
    with pellucid.load("smollm2", threads=2) as llm:
        run = llm.record("The capital of France is", *points, max_new_tokens=3, temperature=0)
    run.save(tmp_path / "parts.run")
    visit = Visit(browser, server.url)
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "parts.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for()
    for stage in ("embeddings", "positions", "blocks", "attention"):
        assert visit.open(stage).locator(".error").all_text_contents() == [], stage
    section = visit.open("attention")
    section.get_by_label("head", exact=True).fill("3")
    section.locator(".arcs .token").nth(5).click()
    best = section.locator("ol.near li").first.inner_text().split()
    row = run["blocks.0.attention.pattern"][1, 3]
    assert int(best[0]) == int(row.argmax())
    assert abs(float(best[2]) - 100 * float(row.max())) < 0.06
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize(
    "at",
    [
        {"head": 0.5},
        {"head": -1},
        {"near": 0.5},
        {"token": 0.5},
        {"beams": 2.5},
        {"block": 1e300},
        {"top_k": -3},
        7,
    ],
)
def test_a_place_that_is_none_is_the_usual_one(browser: Any, server: PageServer, at: Any) -> None:
    made = [{"from": 0, "token": None, "count": 3}]
    stage = "beams" if isinstance(at, dict) and "beams" in at else "attention"
    address = {"model": "mixture", "form": {"text": "some words"}, "stage": stage, "at": at, "made": made}
    visit = Visit(browser, f"{server.url}/#{quote(json.dumps(address))}")
    visit.make_again()
    section = visit.page.locator(f"#stage-{stage}")
    section.locator("ol li").first.wait_for(timeout=SECONDS)
    assert visit.page.locator(".error").count() == 0
    assert visit.said == []
    visit.close()


def test_a_vector_of_two_prompts_steers(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("I think that", tokens=6, temperature=0)
    changes = visit.open("changes")
    changes.locator("summary").click()
    changes.get_by_role("button", name="Add this vector").click()
    plain, changed = compared(changes)
    assert plain != changed
    assert visit.said == []
    visit.close()


def test_a_step_is_measured(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    section = visit.open("timings")
    section.get_by_role("button", name="Measure one token").click()
    section.locator("tbody tr").first.wait_for(timeout=SECONDS)
    assert "a step of 1 token" in section.inner_text()
    assert any("project" in one for one in section.locator("tbody th").all_inner_texts())
    assert serious(visit.page) == []
    assert visit.said == []
    visit.close()
