"""Takes the README's pictures of the page: python tests/web/screenshots.py docs/images

Needs the packages of `make test-web`. SmolLM2 decodes greedily, so that the pictures are the same each time.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

import pellucid
from pellucid.serve.app import create_app
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.browser import ARGUMENTS, CHROMIUM, fill, run_form

TEXT = "The animal didn't cross the street because it was too tired. It"
SHOTS = (("page", 1280, 900, "light"), ("page-narrow", 390, 844, "dark"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    models = ModelPool(["smollm2"], lambda name: pellucid.load(name), 1 << 40)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(models, AccessRules()), log_level="warning")
    threading.Thread(target=uvicorn.Server(config).run, kwargs={"sockets": [listening]}, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name, width, height, scheme in SHOTS:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1.5
            )
            page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}")
            fill(page, TEXT, tokens=24, temperature=0)
            page.locator("details").first.evaluate("(one) => { one.open = false; }")
            run_form(page, 120_000)
            page.locator("#stage-attention h3 button").click()
            page.get_by_label("block", exact=True).select_option("13")
            page.get_by_label("head", exact=True).fill("8")
            page.locator("#stage-attention canvas").first.wait_for()
            page.locator("#stage-attention .arcs").get_by_role("button", name="·it", exact=True).click()
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)
            if width > 800:
                page.locator(".text .token").nth(1).click()
            else:
                page.locator("#stage-attention").scroll_into_view_if_needed()
            page.screenshot(path=out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
