"""A run while it goes: the picture moves, step by step, and can be stopped and shown again slowly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.browser import AGAIN, MADE, MAIN, ended, fill, ignore_eos
from support.page_server import PageServer
from support.page_visit import SECONDS, Visit
from support.sampling import Words

import pellucid
from pellucid.sample.options import Options

PROMPT = "Once upon a time there was a"
MOMENT = """() => ({
    rows: [...document.querySelectorAll('.column.text .token')].map((one) => +one.dataset.token),
    chosen: +document.querySelector('.column.text .token.chosen')?.dataset.token,
    ribbons: [...document.querySelectorAll('.ribbon')]
        .map((one) => [+one.dataset.token, +(one.dataset.residual ?? NaN)]),
    added: [...document.querySelectorAll('.add.attention')].map((one) => +(one.dataset.added ?? NaN)),
    arcs: document.querySelectorAll('.arcs [data-key]').length,
    tokens: +document.querySelector(".text[role='group']").dataset.count,
    level: +(document.querySelector('.level.chosen').dataset.residual ?? NaN),
    candidates: document.querySelectorAll('.candidate').length,
    drawn: document.querySelector('.drawn text').textContent,
    isMoving: !!document.querySelector('.section > .runner'),
})"""


def start(visit: Visit, text: str, tokens: int) -> None:
    """Begin a run, and wait for some tokens."""
    ignore_eos(visit.page)
    fill(visit.page, text, tokens=tokens, temperature=0.7, seed=1)
    visit.page.locator(MAIN).click()
    visit.page.locator(MADE).nth(5).wait_for(timeout=SECONDS)


def test_the_picture_follows_a_run(browser: Any, server: PageServer) -> None:
    """Rows and the chosen token change while tokens come; the loop runs, and rests at the end."""
    visit = Visit(browser, server.url, motion="no-preference")
    visit.choose("smollm2")
    start(visit, "Once upon a time there was a", 1500)
    first = visit.page.evaluate(MOMENT)
    visit.page.wait_for_function(
        """(count) => +document.querySelector(".text[role='group']").dataset.count > count""", arg=first["tokens"] + 20
    )
    second = visit.page.evaluate(MOMENT)
    assert first["isMoving"]
    assert second["isMoving"]
    for moment in (first, second):
        assert moment["chosen"] == moment["tokens"] - 2, "the token after which the last one was drawn"
        assert moment["rows"][-1] == moment["chosen"], "what comes after the chosen token does not exist in its step"
        assert moment["candidates"] > 4
        assert moment["drawn"] != "?"
    assert second["level"] != first["level"]
    assert dict(first["ribbons"]).keys() != dict(second["ribbons"]).keys()
    assert second["chosen"] > first["chosen"]
    assert second["rows"] != first["rows"]
    visit.page.get_by_role("button", name="Stop").click()
    ended(visit.page, SECONDS)
    visit.settle()
    rest = visit.page.evaluate(MOMENT)
    assert not rest["isMoving"]
    assert rest["chosen"] == rest["tokens"] - 2
    assert all(np.isfinite(value) for _, value in rest["ribbons"])
    assert visit.said == []
    visit.close()


def test_ribbons_of_a_running_text_are_its_values(browser: Any, server: PageServer) -> None:
    """What the stream carries is drawn at once, and is what Python records of the same text."""
    visit = Visit(browser, server.url, "large", motion="no-preference")
    visit.choose("smollm2")
    visit.go(block=5)
    start(visit, "Once upon a time there was a", 500)
    moments = list[Any]()
    for number in (8, 300):  # far apart, because the text grows while the page is read
        visit.page.locator(MADE).nth(number).wait_for(timeout=SECONDS)
        moments.append(visit.page.evaluate(MOMENT))
    ended(visit.page, SECONDS)
    visit.settle()
    ids = max((one["prompt"] for one in visit.answers().values() if "prompt" in one), key=len)
    with pellucid.load("smollm2", threads=2) as llm:
        with llm.trace("blocks.5.residual", "blocks.5.attention.output") as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0)
        residual, added = (
            np.linalg.norm(trace.sequences[0][name].astype(float), axis=1)
            for name in ("blocks.5.residual", "blocks.5.attention.output")
        )
    for moment in moments:
        read = [(token, value) for token, value in moment["ribbons"] if np.isfinite(value)]
        assert len(read) >= len(moment["ribbons"]) - 2, "the last token may not have been read yet"
        for token, value in read:
            assert abs(value - residual[token]) < 1e-3 * residual[token], token
        for (token, _), value in zip(moment["ribbons"], moment["added"]):
            assert not np.isfinite(value) or abs(value - added[token]) < 1e-3 * added[token], token
        assert moment["arcs"] > 0
    assert dict(moments[0]["ribbons"]).keys() != dict(moments[1]["ribbons"]).keys()
    assert visit.said == []
    visit.close()


SOFTMAX = """() => ({
    chosen: +document.querySelector('.column.text .token.chosen').dataset.token,
    header: document.querySelector('.stage[data-stage=softmax] .small').textContent,
    shares: [...document.querySelectorAll('.candidate')]
        .map((one) => [+one.dataset.candidate, +one.dataset.probability]),
    isMoving: !!document.querySelector('.section > .runner'),
})"""


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 40, 0.95), (1.4, 0, 0.8), (0.9, 3, 1.0), (0.0, 40, 0.95)]
)
def test_the_softmax_of_a_running_text_is_that_of_its_settings(
    browser: Any, server: PageServer, temperature: float, top_k: int, top_p: float
) -> None:
    """The numbers equal the numbers of the title above them, also where the form has other settings by then."""
    visit = Visit(browser, server.url, "large", motion="no-preference")
    visit.choose("smollm2")
    ignore_eos(visit.page)
    given = {"temperature": temperature, "top-k (0: all)": top_k, "top-p": top_p}
    fill(visit.page, PROMPT, tokens=1900, seed=1, **given)
    visit.page.locator(MAIN).click()
    visit.page.locator(MADE).nth(5).wait_for(timeout=SECONDS)
    moments = [visit.page.evaluate(SOFTMAX)]
    fill(visit.page, PROMPT, tokens=1900, temperature=1.9)
    moments.append(visit.page.evaluate(SOFTMAX))
    visit.page.get_by_role("button", name="Stop").click()
    visit.rest()
    ids = max((one["prompt"] for one in visit.answers().values() if "prompt" in one), key=len)
    with pellucid.load("smollm2", threads=2) as llm:
        with llm.trace("project.logits") as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0)
        logits, size = trace.sequences[0]["project.logits"], llm.inputs.vocabulary
    chain = Options.of(temperature=temperature, top_k=top_k, top_p=top_p, min_p=0, seed=1).chain()
    for moment in moments:
        assert moment["isMoving"]
        assert moment["header"] == f"T {temperature:g} · k {top_k or 'all'} · p {top_p:g}"
        row = logits[moment["chosen"]]
        draw = chain.start(Words(size), []).sample(row)
        left = dict(zip(draw.candidates.ids_at().tolist(), draw.candidates.probabilities()))
        wanted = left if temperature else {draw.token: 1.0}
        tokens = [token for token, _ in moment["shares"]]
        assert tokens == np.argsort(-row[:size], kind="stable")[: len(tokens)].tolist()
        assert len(tokens) > 4
        shares = [share for _, share in moment["shares"]]
        assert np.allclose(shares, [wanted.get(token, 0) for token in tokens], rtol=1e-5)
    after = visit.page.evaluate(SOFTMAX)
    assert after["header"].startswith("T 1.9"), "the picture at rest shows the settings of the form"
    assert visit.said == []
    visit.close()


def test_step_makes_one_token(browser: Any, server: PageServer) -> None:
    """Each step has one token, and the steps together have the text of a run with the same seeds."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    page = visit.page
    fill(page, "The capital of France is", tokens=40, temperature=0)
    for count in range(1, 5):
        page.get_by_role("button", name="Step").click()
        page.locator(MADE).nth(count - 1).wait_for(timeout=SECONDS)
        ended(page, SECONDS)
        assert visit.made() == count
        visit.settle()
        last = page.locator(MADE).last.text_content().removesuffix("\n").replace(" ", "·")
        assert page.locator(".drawn").text_content() == f"{last}drawn"
        assert visit.chosen() == 5 + count - 2
    steps = visit.text()
    visit.write("The capital of France is", tokens=4, temperature=0)
    assert visit.text() == steps
    assert visit.said == []
    visit.close()


SEEK = """(one, t) => {
    one.value = Math.round(1000 * t);
    one.dispatchEvent(new Event('input', { bubbles: true }));
}"""
DRAWN = """() => {
    const svg = document.querySelector('.section > svg'), front = svg.querySelector('clipPath rect');
    const x = front ? +front.getAttribute('width') : Infinity, left = svg.getBoundingClientRect().left;
    const scale = svg.viewBox.baseVal.width / svg.getBoundingClientRect().width;
    const clipped = [...svg.querySelectorAll('[clip-path] text')];
    const isSeen = (one) => (one.getBoundingClientRect().left - left) * scale < x;
    return {
        front: x,
        texts: clipped.filter(isSeen).map((one) => one.textContent),
        loop: !!svg.querySelector('.loop'), drawn: !!svg.querySelector('.drawn'), cut: !!svg.querySelector('.cut'),
        said: document.querySelector('.lead .says').textContent,
        shares: [...svg.querySelectorAll('.candidate .share')].map((one) => +one.getAttribute('width')),
        text: document.querySelector(".text[role='group']").textContent,
        why: !!document.querySelector('.why'),
    };
}"""


@pytest.mark.parametrize("size", ["large", "wide"])
def test_a_replay_shows_nothing_that_has_not_happened(browser: Any, server: PageServer, size: str) -> None:
    """At ten moments, the answer is nowhere on the page before it is drawn; at the end the picture is as before."""
    visit = Visit(browser, server.url, size)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0.7, seed=1)
    visit.go(token=4, block=23, head=4)
    page, before = visit.page, visit.text()
    slider, fronts = page.get_by_label("moment of the step"), list[float]()
    for t in (0.02, 0.11, 0.2, 0.29, 0.37, 0.46, 0.55, 0.61, 0.66, 0.7):
        slider.evaluate(SEEK, t)
        page.wait_for_timeout(50)
        seen = page.evaluate(DRAWN)
        fronts.append(seen["front"])
        assert not any("Paris" in one for one in seen["texts"]), (t, seen)
        assert "Paris" not in seen["said"] + seen["text"]
        assert [seen[name] for name in ("loop", "drawn", "cut", "why")] == [False] * 4
    assert fronts == sorted(fronts)
    assert len(set(fronts)) == len(fronts)
    moments = list[Any]()
    for t in (0.78, 0.82, 0.86, 0.9, 0.95):  # softmax, temperature, cuts, draw, loop
        slider.evaluate(SEEK, t)
        page.wait_for_timeout(50)
        moments.append(page.evaluate(DRAWN))
    assert [one["drawn"] for one in moments][-2:] == [True, True]
    assert not moments[0]["drawn"]
    assert moments[-1]["loop"]
    assert not moments[-2]["loop"]
    assert moments[0]["shares"][0] < moments[-1]["shares"][0], "the share at temperature 1, then of what is left"
    slider.evaluate(SEEK, 1)
    page.wait_for_timeout(50)
    assert visit.text() == before
    assert page.evaluate(DRAWN)["why"]
    assert page.locator(".wavefront").count() == 0
    assert visit.said == []
    visit.close()


WIDTHS = "all => all.map((one) => +one.getAttribute('width'))"


def test_a_replay_goes_through_the_sections_of_a_phone(browser: Any, server: PageServer) -> None:
    """A section below the front is empty until the front comes there."""
    visit = Visit(browser, server.url, "narrow")
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0.7, seed=1)
    visit.go(token=4, block=23, head=4)
    page, reached = visit.page, list[list[float]]()
    for t in (0.05, 0.3, 0.45, 0.6, 0.7):
        page.get_by_label("moment of the step").evaluate(SEEK, t)
        page.wait_for_timeout(50)
        fronts = page.locator(".section clipPath rect").evaluate_all(WIDTHS)
        assert len([one for one in fronts if 0 < one < 10_000]) <= 1, "one front"
        assert fronts == sorted(fronts, reverse=True), (t, fronts)
        reached.append(fronts)
        assert "Paris" not in visit.text()
    assert reached[0][1:] == [0] * (len(reached[0]) - 1)
    assert reached[-1][0] == 10_000
    page.get_by_role("button", name="End", exact=True).click()
    assert page.locator(".wavefront").count() == 0
    assert visit.said == []
    visit.close()


def test_a_replay_plays_and_pauses(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url, motion="no-preference")
    visit.choose("mixture")
    visit.write("some words", tokens=3, temperature=0)
    page = visit.page
    page.get_by_role("button", name="Replay").click()
    page.locator(".wavefront").wait_for(state="attached")
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Replay").wait_for()
    page.wait_for_timeout(50)  # a frame that was planned before the click
    first = page.evaluate(DRAWN)["front"]
    page.wait_for_timeout(300)
    assert page.evaluate(DRAWN)["front"] == first, "a pause holds the front"
    page.get_by_role("button", name="Replay").click()
    page.locator(".wavefront").wait_for(state="detached", timeout=30_000)
    assert page.get_by_role("button", name="Replay").count() == 1
    assert visit.said == []
    visit.close()


def test_a_reload_during_a_run_keeps_text_and_picture(browser: Any, server: PageServer) -> None:
    """The tokens that had come are there again, without a click; a copy of the address in another tab asks first."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    start(visit, PROMPT, 1900)
    before = visit.text()
    visit.page.reload()
    visit.page.locator(MADE).nth(5).wait_for(timeout=SECONDS)
    visit.rest()
    after = visit.text()
    assert after.startswith(before.rstrip()[:40])
    assert visit.made() >= 5
    assert visit.page.locator(".ribbon.chosen").count() >= 1
    address = visit.page.url
    visit.page.wait_for_timeout(600)
    other = Visit(browser, address)
    assert other.page.get_by_role("button", name=AGAIN).count() == 1
    other.close()
    assert visit.said == []
    visit.close()
