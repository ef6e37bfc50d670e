"""The page in a class and on paper: exported pictures, pinned pictures, presentation mode, time and bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image
from support.browser import AGAIN, ended, fill, run_form
from support.page_server import PageServer
from support.page_visit import NO_OPENING, READ, SECONDS, serious

import pellucid

TEXT = "The capital of France is مرحبا <b>&amp;</b>"


@contextmanager
def opened(browser: Any, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[Any]:
    """A page that must not say anything on its console."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page, said = context.new_page(), list[str]()
    page.on("console", lambda one: said.append(one.text) if one.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url if "#" in url or not url.startswith("http") else f"{url}/{NO_OPENING}")
    page.locator(".picture-box, .offer").first.wait_for(timeout=SECONDS)
    yield page
    assert said == []
    context.close()


def write(page: Any, text: str, tokens: int = 6) -> None:
    fill(page, text, tokens=tokens, temperature=0)
    run_form(page, SECONDS)
    page.locator(".candidate").first.wait_for(timeout=SECONDS)
    page.wait_for_load_state("networkidle")


def exported(page: Any, folder: Path) -> tuple[Path, Path]:
    """The SVG and the PNG of the first picture, once all its values are read."""
    page.wait_for_function(READ, timeout=SECONDS)
    page.get_by_role("button", name="Export", exact=True).first.click()
    paths = folder / "picture.svg", folder / "picture.png"
    for path, name in zip(paths, ("SVG", "PNG"), strict=True):
        with page.expect_download(timeout=SECONDS) as found:
            page.get_by_role("button", name=name, exact=True).first.click()
        found.value.save_as(path)
        page.get_by_text(f"Saved as {name}.").wait_for()
    return paths


def checked(browser: Any, svg: Path, png: Path) -> Any:
    """Render an exported SVG in a new page; it and the PNG must need nothing else. Returns its element."""
    root: Any = minidom.parse(str(svg)).documentElement
    text = svg.read_text(encoding="utf-8")
    assert not any(word in text for word in ("var(", "color(", "color-mix", "class=", "style=", "<script"))
    width, height = (int(float(root.getAttribute(name))) for name in ("width", "height"))
    assert struct.unpack(">II", png.read_bytes()[16:24]) == (2 * width, 2 * height)
    page = browser.new_page(viewport={"width": width, "height": height})
    requests = list[str]()
    page.on("request", lambda one: requests.append(one.url) if not one.url.startswith("data:") else None)
    page.goto(svg.as_uri())
    assert requests == [svg.as_uri()]
    outside = page.evaluate(
        """() => [...document.querySelectorAll("text")].filter((one) => {
          const box = one.getBoundingClientRect();
          return box.width > 0 && (box.left < -1 || box.right > innerWidth + 1 || box.bottom > innerHeight + 1);
        }).map((one) => one.textContent)"""
    )
    assert outside == []
    page.close()
    return root


def words_of(element: Any) -> str:
    """The text of an element and of the elements in it."""
    return "".join(one.data if one.nodeType == one.TEXT_NODE else words_of(one) for one in element.childNodes)


@pytest.mark.parametrize("view", ["whole", "block", "head", "vector"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_view_is_exported(
    browser: Any, server: PageServer, tmp_path: Path, view: str, width: int, scheme: str
) -> None:
    with opened(browser, server.url, width, scheme=scheme) as page:
        write(page, TEXT)
        shown = page.locator(".column.text .token .word").all_text_contents()
        if view == "vector":
            page.locator('.strip[data-point="embed"]').first.click()
            page.locator(".vector .note button").first.click()
        elif view != "whole":
            page.locator(".nearer").get_by_role("button", name=re.compile(f"^{view} ")).click()
        page.wait_for_load_state("networkidle")
        page.locator(".picture-box canvas, .picture-svg:not(.stack)").first.wait_for()
        if view == "vector":
            page.locator(".number-card .formula").wait_for()
        root = checked(browser, *exported(page, tmp_path))
        chosen = page.locator(".chosen-token").all_text_contents()
    texts = [words_of(one) for one in root.getElementsByTagName("text")]
    caption = root.getElementsByTagName("title")[0].firstChild.data
    assert caption.startswith("smollm2 · “")
    assert caption.endswith(" · Pellucid")
    assert "<b>&amp;</b>" in caption
    with opened(browser, root.getElementsByTagName("desc")[0].firstChild.data, width) as page:
        page.get_by_role("button", name=AGAIN).click()
        ended(page, SECONDS)
        page.locator(f".picture-box.view-{view} .picture-svg, .picture-box.view-{view} canvas").first.wait_for()
        assert page.locator(".chosen-token").all_text_contents() == chosen
    assert len(root.getElementsByTagName("image")) == (view == "vector")
    assert view != "whole" or set(shown) <= set(texts)
    assert view != "vector" or ("embed [" in caption and " = " in caption)


def test_a_report_is_exported_without_a_server(browser: Any, tmp_path: Path) -> None:
    with pellucid.load("smollm2", threads=2) as llm:
        run = llm.record(TEXT, "embed", "blocks.*.residual", "project.logits", max_new_tokens=3, temperature=0)
    (tmp_path / "report.html").write_text(run.html(), encoding="utf-8")
    with opened(browser, (tmp_path / "report.html").as_uri()) as page:
        root = checked(browser, *exported(page, tmp_path))
    assert root.getElementsByTagName("desc")[0].firstChild.data.startswith("a recorded run")


def test_the_replay_is_saved_as_a_loop(browser: Any, server: PageServer, tmp_path: Path) -> None:
    """An animated PNG of ten seconds. Its first picture has nothing of the answer, its last picture is the page's."""
    with opened(browser, f"{server.url}/#", 1280) as page:
        page.locator(".why .three").wait_for(timeout=SECONDS)
        page.get_by_role("button", name="Export", exact=True).click()
        with page.expect_download(timeout=SECONDS) as found:
            page.get_by_role("button", name="Loop", exact=True).click()
        found.value.save_as(tmp_path / "loop.png")
        page.get_by_text("Saved as an animated PNG.").wait_for()
        assert page.locator(".wavefront").count() == 0, "the page shows the finished picture again"
        ends = [page.locator(f".column.{one}").bounding_box() for one in ("text", "softmax")]
        box = page.locator(".section .picture-svg").bounding_box()
    with Image.open(tmp_path / "loop.png") as loop:
        pictures = []
        for number in range(getattr(loop, "n_frames", 1)):
            loop.seek(number)
            pictures.append((np.asarray(loop.convert("RGB")).astype(int), loop.info["duration"]))
    assert sum(milliseconds for _, milliseconds in pictures) == 80 * 100 + 2000
    assert len(pictures) > 40
    start = int(ends[1]["x"] - box["x"]) + 16
    first, last = pictures[0][0], pictures[-1][0]
    inside = slice(16, 16 + int(box["height"]))
    assert (first[inside, start:] == first[0, 0]).all(), "right of the front nothing exists"
    assert (last[inside, start:] != first[0, 0]).any()
    seen = [int((picture[inside] != first[0, 0]).any(axis=(0, 2)).nonzero()[0].max()) for picture, _ in pictures[:50]]
    assert seen == sorted(seen), "the front goes to the right"


def test_all_heads_are_seen_at_once(browser: Any, server: PageServer) -> None:
    """A square for each head; the order by what a head reads names the same head as Python."""
    with opened(browser, f"{server.url}/#", 1280) as page, pellucid.load("smollm2", threads=2) as llm:
        page.locator(".why .three").wait_for(timeout=SECONDS)
        token = int(page.locator(".column.text .token.chosen").get_attribute("data-token"))
        page.locator(".nearer").get_by_role("button", name="all heads").click()
        grid = page.locator(".all-heads").get_by_role("slider")
        grid.wait_for(timeout=SECONDS)
        assert grid.get_attribute("aria-valuemax") == str(sum(one.attention.heads for one in llm.spec.blocks) - 1)
        text = page.locator(".text .token").all_text_contents()
        with llm.trace("blocks.*.attention.pattern") as trace:
            llm.generate("".join(text[: token + 1]), max_new_tokens=1, temperature=0)
        page.get_by_role("button", name="most specific first").click()
        grid.focus()
        page.keyboard.press("Home")
        page.wait_for_function(READ, timeout=SECONDS)
        said = grid.get_attribute("aria-valuetext")
        block, head = (int(one) for one in re.findall(r"block (\d+), head (\d+)", said)[0])
        weight = float(re.findall(r"takes ([\d.]+) %", said)[0])
        row = trace.sequences[0][f"blocks.{block}.attention.pattern"][head, token]
        assert np.isclose(100 * row, weight, atol=0.06).any(), said
        assert page.locator(".crumbs .heads").inner_text().split("\n")[1] == f"head {head} of 9"
        page.get_by_role("button", name="without heads that rest on the first token").click()
        fewer = int(grid.get_attribute("aria-valuemax")) + 1
        firsts = [trace.sequences[0][f"blocks.{one}.attention.pattern"][:, token, 0] for one in range(30)]
        assert fewer == int((np.concatenate(firsts) < 0.5).sum())
        assert serious(page) == []


def test_a_class_gets_the_same_run_and_questions(browser: Any, server: PageServer) -> None:
    """A teacher's link: the run is read only, and the page checks answers with its own numbers."""
    size = {"width": 1280, "height": 900}
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], viewport=size)
    teacher = context.new_page()
    teacher.goto(server.url)
    teacher.locator(".why .three").wait_for(timeout=SECONDS)
    shown = teacher.locator(".candidate").evaluate_all("all => all.map((one) => one.dataset.probability)")
    teacher.get_by_text("For a class", exact=True).click()
    teacher.get_by_label("question = answer").fill("Which city? = Paris\n2 + 2 = = 4\nno answer")
    assert teacher.get_by_text("1 line is not used").count() == 1
    teacher.get_by_role("button", name="Copy the link for a class").click()
    teacher.get_by_text("with 2 of your own questions").wait_for()
    link = teacher.evaluate("() => navigator.clipboard.readText()")
    context.close()
    with opened(browser, link) as page:
        page.get_by_role("button", name="Open the run").click()
        page.locator(".why .three").wait_for(timeout=SECONDS)
        assert page.locator(".candidate").evaluate_all("all => all.map((one) => one.dataset.probability)") == shown
        assert page.locator("textarea, .chips").count() == 0
        page.locator('.candidate[data-token="28"], .candidate').nth(1).click()
        assert page.locator(".branches").count() == 0, "no other token can be drawn"
        answers = {"reads": ("0", "3"), "first": ("3", "29"), "kept": ("5", "1"), "word": ("0", "3")}
        answers |= {"own0": ("London", " paris"), "own1": ("5", "4")}
        questions = page.locator(".questions li")
        assert questions.evaluate_all("all => all.map((one) => one.dataset.question)") == list(answers)
        for name, given in answers.items():
            question = page.locator(f'[data-question="{name}"]')
            for answer, says in zip(given, ("Not yet", "Right"), strict=True):
                if question.locator("select").count():
                    question.locator("select").select_option(answer)
                else:
                    question.locator("input").fill(answer)
                question.get_by_role("button").click()
                assert says in question.get_by_role("status").inner_text(), name
        assert page.get_by_text("6 of 6 right.").count() == 1
        assert serious(page, None, "label-content-name-mismatch", "target-size") == []


def test_swipes_go_from_stage_to_stage(browser: Any, server: PageServer) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, reduced_motion="reduce")
    page = context.new_page()
    page.goto(server.url)
    page.locator(".why .three").wait_for(timeout=SECONDS)
    tops = "() => [...document.querySelectorAll('.section')].map((one) => one.getBoundingClientRect().top)"
    swipe = """([from, to]) => {
        const box = document.querySelector('.picture-box'), target = document.querySelector('.column.text');
        const touch = (x) => new Touch({ identifier: 1, target, clientX: x, clientY: 400 });
        for (const [name, x] of [['touchstart', from], ['touchend', to]]) target.dispatchEvent(new TouchEvent(name,
            { bubbles: true, touches: name === 'touchstart' ? [touch(x)] : [], changedTouches: [touch(x)] }));
    }"""
    for move, section in (((300, 100), 0), ((300, 100), 1), ((300, 100), 2), ((100, 300), 1)):
        page.evaluate(swipe, move)
        low = page.evaluate("() => document.querySelector('.map').offsetHeight")
        assert page.evaluate(tops)[section] == pytest.approx(low + 8, abs=2)
    before = page.evaluate("() => scrollY")
    page.evaluate(swipe, (300, 280))
    assert page.evaluate("() => scrollY") == before, "a short move is no swipe"
    context.close()


def test_a_pinned_picture_keeps_its_text_and_model(browser: Any, server: PageServer) -> None:
    with opened(browser, server.url, 1920, 1080) as page:
        write(page, "The capital of France is")
        page.get_by_role("button", name="Pin", exact=True).click()
        pinned, living = page.locator(".picture-box.pinned"), page.locator(".picture-box:not(.pinned)")
        for picture in (pinned, living):  # the logits were read, and the texts of the candidates are there
            picture.locator(".score").first.wait_for(timeout=SECONDS)
        page.locator(".picture-box[aria-busy='false']").nth(1).wait_for(timeout=SECONDS)
        label = "one => [...one.querySelectorAll('.token, .candidate')].map((e) => e.getAttribute('aria-label'))"
        kept = pinned.evaluate(label)
        assert kept == living.evaluate(label)
        boxes = pinned.bounding_box(), living.bounding_box()
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["width"] >= 900
        assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"]
        page.locator("header select").select_option("mixture")
        page.locator("textarea").wait_for(timeout=SECONDS)
        write(page, "ab", tokens=3)
        # More answers than are kept for what is not on the screen.
        for _ in range(26):
            living.locator(".column.text .token").first.press("ArrowDown")
            living.locator(".column.text .token").first.press("ArrowUp")
        assert pinned.evaluate(label) == kept
        assert "smollm2" in pinned.locator(".picture-title").inner_text()
        assert "mixture" in living.locator(".picture-title").inner_text()
        before = page.url
        pinned.locator(".column.text .token").nth(2).click()
        assert pinned.locator(".token.chosen").get_attribute("data-token") == "2"
        pinned.locator(".candidate").nth(11).wait_for()
        assert page.url == before
        assert serious(page) == []
        page.set_viewport_size({"width": 1280, "height": 900})
        boxes = pinned.bounding_box(), living.bounding_box()
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
        page.get_by_role("button", name="Unpin", exact=True).click()
        assert pinned.count() == 0


SMALL = """() => {
  const found = [], walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const one = walk.currentNode.parentElement, svg = one.closest("svg");
    const isSeen = walk.currentNode.data.trim() && !one.closest(".hidden, title, option") && one.getClientRects()[0];
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = isSeen ? parseFloat(getComputedStyle(one).fontSize) * scale : Infinity;
    if (size < 17.99) found.push([one.outerHTML.slice(0, 90), size]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_presentation_mode_is_large_enough_for_a_room(browser: Any, server: PageServer, scheme: str) -> None:
    other = "light" if scheme == "dark" else "dark"
    with opened(browser, server.url, 1920, 1080, scheme) as page:
        write(page, "The capital of France is")
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Present", exact=True).click()
        for stop in range(1, 10):
            page.keyboard.press("ArrowRight")
            page.get_by_role("button", name=f"Tour {stop}/9").wait_for()
            page.wait_for_load_state("networkidle")
            assert page.evaluate(SMALL) == [], stop
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 1920
        page.keyboard.press("ArrowLeft")
        page.get_by_role("button", name="Tour 8/9").wait_for()
        page.get_by_role("button", name="Dark", exact=True).click()
        page.locator(f':root[data-scheme="{other}"]').wait_for()
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != ground
        page.keyboard.press("Escape")
        page.locator(":root:not(.presented)").wait_for()
        page.reload()
        page.locator(".picture-box, .offer").first.wait_for(timeout=SECONDS)
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") != ground


def test_stages_show_bytes_and_time(browser: Any, server: PageServer) -> None:
    with opened(browser, server.url) as page:
        write(page, "The capital of France is")
        info = page.request.get(f"{server.url}/look/models/smollm2").json()
        kinds, rest = info["graph"]["kinds"], info["graph"]["rest"]
        blocks = [sum(one["bytes"] for one in kinds[kind]["points"]) for kind in info["graph"]["blocks"]]
        page.get_by_role("button", name="bytes", exact=True).click()
        page.locator(".stage .cost").first.wait_for()
        costs = "all => all.map((one) => [+one.dataset.cost, one.width.baseVal.value])"
        drawn = page.locator(".stage .cost").evaluate_all(costs)
        assert sum(value for value, _ in drawn) == sum(blocks) + sum(one["bytes"] for one in rest)
        scales = [width / value for value, width in drawn]
        assert max(scales) == pytest.approx(min(scales), rel=1e-3)
        shown = page.locator(".stack .level").evaluate_all("all => all.map((one) => +one.dataset.bytes)")
        assert shown == blocks
        page.get_by_role("button", name="time", exact=True).click()
        assert page.locator(".stage .cost").count() == 0
        page.get_by_role("button", name="Measure one token").click()
        page.get_by_role("button", name="Measure again").wait_for(timeout=SECONDS)
        assert page.locator(".stage .cost").count() > 4
        assert "measure" in page.evaluate("() => location.hash")
        page.get_by_role("button", name="values", exact=True).click()
        assert page.locator(".stage .cost").count() == 0
