"""Takes pictures of the page: python tests/web/screenshots.py docs/images --no-tour

    page.png, page-narrow.png    the page as it opens
    replay.png                   the picture in the middle of a step
    block.png, number.png        nearer: a block, and a head with the formula of one number
    run.png                      an animation: one step of the model from the left to the right
    tour/1.png, 1-narrow.png …   every stop of the tour on both widths

Needs the packages of `make test-web`. SmolLM2 decodes greedily, so that the pictures are the same each time.
"""

from __future__ import annotations

import argparse
import base64
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright

import pellucid
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.server import create_app

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.animated_png import animated_png
from support.browser import ARGUMENTS, CHROMIUM
from support.page_visit import SECONDS, SIZES, Visit

TEXT = "The animal didn't cross the street because it was too tired. It"
STOPS, BLOCK, HEAD, IT, ANIMAL = 9, 13, 8, 8, 1
SIZES |= {"page": (1280, 1080), "page-narrow": (390, 1200)}
EDGE = 8  # pixels around a part of the page
BEAT, FRAMES, MOMENT = 180, 56, 0.33  # milliseconds of the animation's frames, their number; the moment of the still
SEEK = "(one, t) => { one.value = 1000 * t; one.dispatchEvent(new Event('input', { bubbles: true })); }"


def serve() -> str:
    """Start a server of SmolLM2. Returns its address."""
    models = ModelPool(["smollm2"], lambda name: pellucid.load(name), 1 << 40)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(models, AccessRules()), log_level="warning")
    threading.Thread(target=uvicorn.Server(config).run, kwargs={"sockets": [listening]}, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def take(visit: Visit, path: Path, **options: Any) -> None:
    """Write a picture of a page at rest."""
    visit.page.mouse.move(0, 0)
    visit.settle()
    visit.page.wait_for_load_state("networkidle")
    visit.page.screenshot(path=path, animations="disabled", **options)


def take_views(browser: Any, url: str, out: Path) -> None:
    """Pictures for the documentation."""
    visit = Visit(browser, url, "page", scale=1.5, opening=True)
    visit.page.locator(".why .three").wait_for(timeout=SECONDS)
    visit.page.evaluate("scrollTo(0, 0)")
    take(visit, out / "page.png", full_page=True)
    visit.page.get_by_label("moment of the step").evaluate(SEEK, MOMENT)
    take(visit, out / "replay.png", clip=box_of(visit, ".picture-box"), full_page=True)
    visit.write(TEXT, tokens=24, temperature=0)
    visit.go(view="block", block=BLOCK, head=HEAD, token=IT, key=-1, point=f"blocks.{BLOCK}.attention.q")
    take(visit, out / "block.png", clip=box_of(visit, ".picture-box"), full_page=True)
    visit.go(view="head", key=ANIMAL, point=f"blocks.{BLOCK}.attention.pattern")
    take(visit, out / "number.png")
    visit.close()
    narrow = Visit(browser, url, "page-narrow", "dark", scale=1.5, opening=True)
    narrow.page.locator(".why .three").wait_for(timeout=SECONDS)
    narrow.page.locator(".lead").evaluate("(one) => one.scrollIntoView()")
    take(narrow, out / "page-narrow.png")
    narrow.close()


def box_of(visit: Visit, *selectors: str) -> dict[str, float]:
    """The rectangle of some parts of a page, on the whole page."""
    code = """([selectors, edge]) => {
        const boxes = selectors.map((one) => document.querySelector(one).getBoundingClientRect());
        const [x, y] = [Math.min(...boxes.map((one) => one.left)), Math.min(...boxes.map((one) => one.top))];
        const [right, low] = [Math.max(...boxes.map((one) => one.right)), Math.max(...boxes.map((one) => one.bottom))];
        const [width, height] = [right - x + 2 * edge, low - y + 2 * edge];
        return { x: x + scrollX - edge, y: y + scrollY - edge, width, height };
    }"""
    visit.settle()
    found: dict[str, float] = visit.page.evaluate(code, [list(selectors), EDGE])
    return found


def take_tour(browser: Any, url: str, out: Path) -> None:
    """Every stop of the tour on both widths, whole pages."""
    out.mkdir(parents=True, exist_ok=True)
    for size, name in (("wide", ""), ("narrow", "-narrow")):
        visit = Visit(browser, url, size)
        visit.write(TEXT, tokens=12, temperature=0)
        for stop in range(1, STOPS + 1):
            visit.go(stop=stop)
            visit.page.locator(".about-card h3", has_text=f"{stop}. ").wait_for(timeout=SECONDS)
            take(visit, out / f"{stop}{name}.png", full_page=True)
        visit.close()


def take_animation(browser: Any, url: str, path: Path) -> None:
    """The replay of a step, a frame for each of ``FRAMES`` moments."""
    visit, frames = Visit(browser, url, "wide", opening=True), list[tuple[NDArray[np.uint8], int]]()
    page, context = visit.page, browser.new_context()
    decoder, slider = context.new_page(), page.get_by_label("moment of the step")
    page.locator(".why .three").wait_for(timeout=SECONDS)
    box = box_of(visit, ".lead", ".scrubber")
    for number in range(FRAMES + 1):
        slider.evaluate(SEEK, number / FRAMES)
        page.wait_for_timeout(60)
        shot = page.screenshot(clip=box, full_page=True, animations="disabled")
        frames.append((pixels(decoder, shot), 3 * BEAT if number == FRAMES else BEAT))
    path.write_bytes(animated_png(frames))
    visit.close()
    context.close()


def pixels(decoder: Any, shot: bytes) -> NDArray[np.uint8]:
    """The pixels (height, width, 3) of a PNG file, which the browser decodes."""
    code = """async (text) => {
        const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${text}`)).blob());
        const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
        context.drawImage(bitmap, 0, 0);
        const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
        let made = "";
        for (let i = 0; i < data.length; i += 8192) made += String.fromCharCode(...data.subarray(i, i + 8192));
        return [bitmap.width, bitmap.height, btoa(made)];
    }"""
    width, height, data = decoder.evaluate(code, base64.b64encode(shot).decode())
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-tour", action="store_true", help="without the stops of the tour")
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    url = serve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        take_views(browser, url, out)
        take_animation(browser, url, out / "run.png")
        if not asked.no_tour:
            take_tour(browser, url, out / "tour")
        browser.close()


if __name__ == "__main__":
    main()
