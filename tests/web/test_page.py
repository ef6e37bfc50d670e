"""The page in a real browser: every stage of several models, branches, changes, requests of others, hostile texts.

Runs where Playwright and a Chromium are (`make test-web` installs both).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-web installs Playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-web installs axe")

from support.browser import ARGUMENTS, CHROMIUM  # noqa: E402
from support.served import Served  # noqa: E402

import pellucid  # noqa: E402
from pellucid.serve.guard import AccessRules  # noqa: E402
from pellucid.testing import random_model  # noqa: E402

pytestmark = pytest.mark.model
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
MODELS = ("smollm2", "minilm", "mixture", "hybrid")
HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> \u202e\x07\x1b[31m & &amp; {{7*7}} `${1}`"
SECONDS = 60_000


class PageServer(Served):
    """A server of the models that tests look into."""

    def __init__(self, folder: Path, rules: AccessRules | None = None) -> None:
        super().__init__(folder, rules or AccessRules())
        self.models.names[:] = MODELS
        self.models._load = lambda name: pellucid.load(
            folder / f"{name}.gguf" if (folder / f"{name}.gguf").exists() else name, threads=2
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    random_model("qwen2moe", made / "mixture.gguf", layers=3, context=512)
    random_model("qwen3next", made / "hybrid.gguf", context=512)
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
    """A page that is open; what its console says is collected."""

    def __init__(self, browser: Any, url: str, size: str = "wide", scheme: str = "light") -> None:
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
        self.page.locator("textarea, .error").first.wait_for(timeout=SECONDS)

    def choose(self, model: str) -> None:
        self.page.locator("header select").select_option(model)
        self.page.locator("textarea").wait_for(timeout=SECONDS)

    def write(self, text: str, tokens: int = 12, **options: Any) -> None:
        self.page.locator("#prompt").fill(text)
        if self.page.locator("details").count():
            self.page.locator("details").evaluate("(one) => { one.open = true; }")
            for name, value in {"tokens": tokens, **options}.items():
                self.page.get_by_label(name, exact=True).fill(str(value))
                self.page.get_by_label(name, exact=True).blur()
        self.page.locator("form button.main").click()
        self.page.locator("form button.main:not([disabled])").wait_for(timeout=SECONDS)

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
    """The likeliest first token's probability without and with the changes, as the page compares them."""
    changes.get_by_role("button", name="Compare with and without").click(timeout=SECONDS)
    changes.locator(".two").wait_for(timeout=SECONDS)
    return [one.locator(".num").first.inner_text() for one in changes.locator(".two > div").all()]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("narrow", "dark")])
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


def test_the_page_shows_what_python_records(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The animal didn't cross the street because it was too tired", tokens=8, temperature=0)
    visit.open("attention")
    (asked, answer) = next((key, one) for key, one in visit.answers().items() if "attention.pattern" in key)
    shown = answer["arrays"]["blocks.0.attention.pattern"]
    visit.close()
    with pellucid.load("smollm2", threads=2) as llm:
        ids = answer["prompt"]
        with llm.trace("blocks.0.attention.pattern") as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0)
        wanted = trace.sequences[0]["blocks.0.attention.pattern"]
        assert shown["shape"] == list(wanted.shape)
        assert np.array_equal(np.array(shown["values"], np.float32).reshape(wanted.shape), wanted)
        made = llm.generate(
            "The animal didn't cross the street because it was too tired", max_new_tokens=8, temperature=0
        )
        assert ids[-8:] == made.ids, asked


def test_branches_and_alternatives(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=10, temperature=0)
    before = visit.page.locator(".text").first.inner_text()
    visit.page.locator(".text .token").nth(0).click()
    visit.page.locator(".alternatives button:has-text('branch')").first.click()
    visit.page.locator("form button.main:not([disabled])").wait_for(timeout=SECONDS)
    visit.page.locator(".branches").wait_for(timeout=SECONDS)
    assert visit.page.locator(".branches li").count() == 2
    assert visit.page.locator(".text").first.inner_text() != before
    visit.page.locator(".branches button").first.click()
    assert visit.page.locator(".text").first.inner_text() == before
    visit.page.wait_for_timeout(800)
    address = visit.page.url
    visit.close()
    again = Visit(browser, address)
    again.page.locator(".text .token").nth(9).wait_for(timeout=SECONDS)
    assert again.page.locator(".text").first.inner_text() == before, "the address makes the same view"
    again.close()


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
    visit.page.locator("form button.main").click()
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
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "paris.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for()
    assert "".join(run.pieces) in visit.page.locator(".text").first.inner_text()
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
