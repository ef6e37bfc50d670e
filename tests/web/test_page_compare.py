"""The page in a class and on paper: exported pictures, pinned pictures, presentation mode, time and bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
from support.browser import AGAIN, ended, fill, run_form
from support.page_server import PageServer
from support.page_visit import NO_OPENING, SECONDS, serious

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
    """The SVG and the PNG of the first picture."""
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
            page.locator(".nearer").get_by_role("button", name=view).click()
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
