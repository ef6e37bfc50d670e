"""Costs of the web page: its first paint, the paint of a new token, stages of long texts, and decode while it is open.

    python bench/page.py [--model smollm2] [--tokens 1000] [--long 2000]

The script needs the packages of `make test-web`. The first paint is the browser's own figure, with the model loaded. A
token's paint is the time from the frame of its arrival until the page's styles and layout are done, with --tokens
tokens on the screen. For stages of a text of --long tokens the script reports the longest time without a response of
the page: when a stage is opened, and when another token or block is selected in it. A client of the server measures
decode without the page, with the page open, and with its list of requests open, in turn.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from playwright.sync_api import Page, sync_playwright

import pellucid
from pellucid.serve.app import create_app
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.browser import ARGUMENTS, CHROMIUM, MAIN, ended, fill, run_form

TURNS, ANSWER = 7, 128
# A frame's work is timed from its callback to the end of the layout that it causes.
TIMED = """
globalThis.paints = [];
const frame = globalThis.requestAnimationFrame.bind(globalThis);
globalThis.requestAnimationFrame = (call) => frame((time) => {
  const start = performance.now();
  call(time);
  const settled = () => { document.body.offsetHeight; globalThis.paints.push(performance.now() - start); };
  Promise.resolve().then(() => Promise.resolve()).then(settled);
});
"""


def server(model: str) -> str:
    models = ModelPool([model], lambda name: pellucid.load(name), 1 << 40)
    models.put(model, pellucid.load(model))
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(models, AccessRules()), log_level="warning")
    run = uvicorn.Server(config).run
    threading.Thread(target=run, kwargs={"sockets": [listening]}, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def first_paint(page: Page, url: str) -> float:
    page.goto(url)
    page.locator("textarea").wait_for()
    found = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return float(found) / 1000


def paints(page: Page, tokens: int) -> list[float]:
    """Milliseconds of each frame that had new tokens, for the last quarter of the tokens."""
    fill(page, "Once upon a time there was a", tokens=tokens)
    page.locator(MAIN).click()
    page.locator(".text .token").nth(tokens * 3 // 4).wait_for(timeout=300_000)
    before = page.evaluate("() => globalThis.paints.length")
    ended(page, 300_000)
    found: list[float] = page.evaluate("(from) => globalThis.paints.slice(from)", before)
    return found


BLOCKED = """
async ([selector, seconds]) => {
  const wanted = document.querySelector(selector);
  let longest = 0, last = performance.now();
  const end = last + 1000 * seconds, channel = new MessageChannel();
  const over = new Promise((done) => {
    channel.port1.onmessage = () => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      if (now < end) channel.port2.postMessage(0);
      else done();
    };
  });
  wanted.click();
  channel.port2.postMessage(0);
  await over;
  return longest;
}
"""
LONG = "The old man looked at the sea for a long time and said nothing, because there was nothing to say. "
CHOICES = {
    "a token": ".tokens .chunk:nth-child(3) button:nth-child(7)",
    "a block": "[aria-label='block after']",
}


def blocked(page: Page, tokens: int) -> dict[str, float]:
    """Longest time in milliseconds without a response of the page, by stage and selection."""
    fill(page, LONG * (tokens // 21), tokens=20)
    run_form(page, 300_000)
    found = {}
    for stage in (
        "tokens",
        "embeddings",
        "positions",
        "blocks",
        "attention",
        "feedforward",
        "lens",
        "sampling",
    ):
        body = f"#stage-{stage}"
        found[f"{stage}, opened"] = page.evaluate(BLOCKED, [f"{body} h3 button", 6])
        page.locator(body).get_by_text("Reading the values").first.wait_for(state="detached", timeout=120_000)
        for what, selector in CHOICES.items():
            if page.locator(f"{body} {selector}").count():
                found[f"{stage}, {what}"] = page.evaluate(BLOCKED, [f"{body} {selector}", 4])
    return found


def decode(url: str, model: str) -> float:
    body = {
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": ANSWER,
        "ignore_eos": True,
        "prompt_lookup": False,
    }
    start = time.perf_counter()
    httpx.post(url + "/v1/completions", json=body, timeout=300).raise_for_status()
    return ANSWER / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--long", type=int, default=2000)
    given = parser.parse_args()
    url, found = server(given.model), dict[str, Any]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)

        def opened() -> Page:
            page = browser.new_page()
            page.add_init_script(TIMED)
            return page

        page = opened()
        found["first_paint_seconds"] = statistics.median(first_paint(page, url) for _ in range(5))
        times = sorted(paints(page, given.tokens))
        found["paints"] = len(times)
        found["paint_median_ms"] = statistics.median(times)
        found["paint_p95_ms"] = times[int(0.95 * (len(times) - 1))]
        page.close()
        page = opened()
        first_paint(page, url)
        for what, milliseconds in blocked(page, given.long).items():
            found[f"{given.long} tokens, {what}, ms"] = milliseconds
        page.close()
        rates: dict[str, list[float]] = {"closed": [], "open": [], "list of requests": []}
        for _ in range(TURNS):
            rates["closed"].append(decode(url, given.model))
            page = opened()
            first_paint(page, url)
            time.sleep(1)
            rates["open"].append(decode(url, given.model))
            page.locator("#stage-live h3 button").click()
            rates["list of requests"].append(decode(url, given.model))
            page.close()
        browser.close()
    for name, values in rates.items():
        found[f"decode, page {name}"] = statistics.median(values)
    for name, value in found.items():
        print(f"{name:44} {value:,.3f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
