"""Costs of the web page: its first paint, the picture while tokens come, decode while it is open, and zooming.

    python bench/page.py [--model smollm2] [--tokens 1000] [--long 2000] [--turns 9]

The script needs the packages of `make test-web`. All times are Chromium's own, of headless Chromium without a GPU, on
the machine that runs the server too:

- first paint: `first-contentful-paint`, and the frames that first show the form, and the finished picture with its
  causes; the model is loaded. Medians of --turns visits, each with an empty profile of the browser. The visit before
  them is measured alone: the server computes what the picture shows
- an update: the tasks of the page's main thread from one update of the page to the next, in Chromium's timeline (trace
  events), for the last quarter of --tokens tokens; their processor time (cpu), and their wall time, which is longer
  where other threads use the same cores. "update" is beside the running model. "replayed_update" is the page alone:
  the server sends a recorded stream again, each part as long after the first part as when it was recorded, without the
  page. "tokens_per_update": the tokens that arrive between two updates
- a choice: the longest time without a response of the page after a click on a token, a block or a panel, in a text of
  --long tokens
- replay: frames while the first picture is replayed in 8 s
- zooming: frames while the picture goes nearer and farther in the same text
- decode: tokens per second of another client, without the page, with the page open, and with its list of requests open,
  in turn; the ratio is the median of the turns' ratios

Output: the figures, and whether they keep the floors of FLOORS. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import threading
import time
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import pellucid
from pellucid.measure.roofs import facts
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.server import create_app

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.browser import ARGUMENTS, CHROMIUM, MADE, MAIN, TEXT, fill, ignore_eos, list_stages, run_form

FLOORS = {
    "first_paint_seconds": ("at most", 0.5),
    "finished_picture_seconds": ("at most", 0.7),
    "replayed_update_p95_wall_ms": ("at most", 16.0),
    "decode_ratio": ("at least", 0.95),
    "replay_frames_per_second": ("at least", 60.0),
    "zoom_frames_per_second": ("at least", 60.0),
}
RUNS = 3  # of the text with --tokens tokens
ANSWER = 128  # tokens of the other client's answers
LONG = "The old man looked at the sea for a long time and said nothing, because there was nothing to say. "
LONG_TOKENS = 21  # tokens of it
FINISHED = ".why .three"  # the causes, which the page asks for last
SHOWN = (
    f"globalThis.awaited = {json.dumps(['#prompt', FINISHED])};"
    + """
globalThis.shown = {};
new MutationObserver(() => {
  for (const selector of globalThis.awaited) {
    if (globalThis.shown[selector] || !document.querySelector(selector)) continue;
    globalThis.shown[selector] = Infinity;
    requestAnimationFrame(() => { globalThis.shown[selector] = performance.now(); });
  }
}).observe(document, { childList: true, subtree: true });
"""
)
TIMELINE = ["devtools.timeline", "disabled-by-default-devtools.timeline", "blink.user_timing"]
# The page writes the number of tokens into an attribute of the text: a mark in the timeline says when.
UPDATE = "tokens drawn"
MARK_UPDATES = """(mark) => new MutationObserver(() => performance.mark(mark))
  .observe(document.body, { attributeFilter: ["data-count"], subtree: true })"""
# Playwright's own polling would be among the page's tasks.
WHEN_ENDED = """(main) => {
  globalThis.runEnded = false;
  const button = document.querySelector(main);
  new MutationObserver((_, watch) => {
    if (button.disabled) return;
    watch.disconnect();
    globalThis.runEnded = true;
  }).observe(button, { attributes: true });
}"""
# The longest gap between two messages that the page sends to itself, after a click.
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
  wanted.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  channel.port2.postMessage(0);
  await over;
  return longest;
}
"""
CHOICES = {
    "a token of the text": f"{TEXT} .token:nth-child(20)",
    "a row of the picture": ".column.text .token:not(.chosen)",
    "a block": ".stack .level:nth-of-type(12)",
    "a head": "[aria-label='the next head']",
}
PANELS = ("tokens", "embeddings", "positions", "blocks", "attention", "feedforward", "lens", "sampling")
# Times of all frames for some seconds.
FRAMES = """
async (seconds) => {
  const times = [], start = performance.now();
  await new Promise((done) => {
    const frame = (now) => {
      times.push(now);
      if (now - start < 1000 * seconds) requestAnimationFrame(frame);
      else done();
    };
    requestAnimationFrame(frame);
  });
  return times;
}
"""
# The picture goes nearer, by keys on its path, and back to the whole.
ZOOMING = """() => {
  const press = (key) => document.querySelector(".crumbs button")
    .dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  let turn = 0;
  setInterval(() => press(turn++ % 4 < 2 ? "+" : "-"), 500);
}"""


class Replayed:
    """An app that records its last answer to /look/generate while ``records``, and sends it to all while ``replays``.

    ``parts`` are the messages of the recorded answer, with their seconds after its request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.records, self.replays = app, False, False
        self.parts: list[tuple[float, Message]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope.get("path") != "/look/generate" or not (self.records or self.replays):
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        if self.records:
            self.parts = []

            async def keep(message: Message) -> None:
                self.parts.append((time.perf_counter() - start, message))
                await send(message)

            await self.app(scope, receive, keep)
            return
        for seconds, message in self.parts:
            await asyncio.sleep(seconds - self.parts[0][0] - (time.perf_counter() - start))
            await send(message)


def server(model: str) -> tuple[str, Replayed]:
    """Start a server with the model loaded. Returns its address and its app."""
    models = ModelPool([model], lambda name: pellucid.load(name), 1 << 40)
    models.put(model, pellucid.load(model))
    listening = socket.create_server(("127.0.0.1", 0))
    app = Replayed(create_app(models, AccessRules()))
    run = uvicorn.Server(uvicorn.Config(app, log_level="warning")).run
    threading.Thread(target=run, kwargs={"sockets": [listening]}, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", app


def opened(browser: Browser, url: str) -> Page:
    """A new page, with its form."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(SHOWN)
    page.goto(url)
    page.locator("#prompt").wait_for()
    return page


def first_paint(browser: Browser, url: str) -> tuple[float, float, float]:
    """Seconds until the first paint, until the form is drawn, and until the picture is finished."""
    page = opened(browser, url)
    page.wait_for_function("(one) => globalThis.shown[one] < Infinity", arg=FINISHED, polling=100)
    found = page.evaluate(
        """(one) => [performance.getEntriesByName("first-contentful-paint")[0].startTime,
            globalThis.shown["#prompt"], globalThis.shown[one]]""",
        FINISHED,
    )
    page.close()
    return found[0] / 1000, found[1] / 1000, found[2] / 1000


def frames(page: Page, seconds: float) -> list[float]:
    """Milliseconds between the frames of the next seconds, the shortest first."""
    times = page.evaluate(FRAMES, seconds)
    return sorted(after - before for before, after in pairwise(times))


def replay(browser: Browser, url: str) -> dict[str, Any]:
    """Frames of the replay of the first picture."""
    page = opened(browser, url)
    page.locator(FINISHED).wait_for()
    settle(page)
    page.get_by_role("button", name="Replay").click()
    gaps = frames(page, 7.5)
    page.close()
    return {"replay_frames_per_second": 1000 * len(gaps) / sum(gaps), "replay_frame_p95_ms": at_share(gaps, 0.95)}


def at_share(values: list[float], share: float) -> float:
    """The value below which a share of sorted values lies."""
    return values[int(share * (len(values) - 1))]


def updates_of(timeline: dict[str, Any]) -> list[tuple[float, float]]:
    """Milliseconds and processor milliseconds of the page's main thread for each update of its last quarter.

    The tasks from one that draws tokens up to the next belong to an update: style, layout and paint, and the reading of
    the next tokens. The last update is left out: the end of the run follows it.
    """
    events = timeline["traceEvents"]
    marks = [one for one in events if one["name"] == UPDATE]
    mine = [one for one in events if (one["pid"], one["tid"]) == (marks[0]["pid"], marks[0]["tid"])]
    tasks = sorted((one["ts"], one.get("dur", 0), one.get("tdur", 0)) for one in mine if one["name"] == "RunTask")
    times = sorted(one["ts"] for one in marks)
    starts, quarter = [start for start, _, _ in tasks], times[0] + 0.75 * (times[-1] - times[0])
    first = sorted({bisect_right(starts, mark) - 1 for mark in times if mark >= quarter})
    return [
        (sum(took for _, took, _ in tasks[at:after]) / 1000, sum(used for _, _, used in tasks[at:after]) / 1000)
        for at, after in pairwise(first)
    ]


def updates(
    browser: Browser, url: str, app: Replayed, tokens: int, is_replayed: bool
) -> tuple[list[tuple[float, float]], str]:
    """The result of ``updates_of`` for a text of ``tokens`` tokens, and the body of the page's request."""
    page = opened(browser, url)
    page.locator(FINISHED).wait_for()
    app.replays = is_replayed
    ignore_eos(page)
    fill(page, "Once upon a time there was a", tokens=tokens, temperature=0.8)
    page.evaluate(WHEN_ENDED, MAIN)
    page.evaluate(MARK_UPDATES, UPDATE)
    browser.start_tracing(page=page, categories=TIMELINE)
    with page.expect_request("**/look/generate") as asked:
        page.locator(MAIN).click()
    page.wait_for_function("() => globalThis.runEnded", polling=500, timeout=300_000)
    timeline = json.loads(browser.stop_tracing())
    made = page.locator(MADE).count()
    if made < 0.9 * tokens:
        raise SystemExit(f"the text ended after {made} of {tokens} tokens")
    page.close()
    app.replays = False
    return updates_of(timeline), json.dumps({**(asked.value.post_data_json or {}), "ignore_eos": True})


def all_updates(browser: Browser, url: str, app: Replayed, tokens: int) -> dict[str, Any]:
    """Figures of the updates of RUNS texts beside the model, and of the page alone."""
    beside, alone, body = [], [], ""
    for _ in range(RUNS):
        times, body = updates(browser, url, app, tokens, False)
        beside += times
    app.records = True
    answer = httpx.post(url + "/look/generate", content=body, headers={"Content-Type": "application/json"}, timeout=300)
    app.records = False
    answer.raise_for_status()
    for _ in range(RUNS):
        alone += updates(browser, url, app, tokens, True)[0]
    seconds = app.parts[-1][0] - app.parts[0][0]
    found: dict[str, Any] = {"stream_tokens_per_second": tokens / seconds}
    for name, updated in (("update", beside), ("replayed_update", alone)):
        found[f"{name}s"], found[f"tokens_per_{name}"] = len(updated), RUNS * tokens / 4 / len(updated)
        for number, unit in enumerate(("wall_ms", "cpu_ms")):
            values = sorted(one[number] for one in updated)
            found[f"{name}_median_{unit}"] = statistics.median(values)
            found[f"{name}_p95_{unit}"] = at_share(values, 0.95)
    return found


def settle(page: Page) -> None:
    """Wait until all values are there that the page asked for."""
    page.wait_for_timeout(300)
    page.wait_for_function("() => !document.querySelector('[aria-busy=\"true\"]')", timeout=120_000)


def long_text(browser: Browser, url: str, tokens: int) -> dict[str, Any]:
    """Longest times without a response of the page, and frames while zooming, in a long text."""
    page = opened(browser, url)
    fill(page, LONG * (tokens // LONG_TOKENS), tokens=20)
    run_form(page, 300_000)
    settle(page)
    blocked = {}
    for what, selector in CHOICES.items():
        blocked[what] = page.evaluate(BLOCKED, [selector, 2])
        settle(page)
    list_stages(page)
    for panel in PANELS:
        blocked[f"{panel} opened"] = page.evaluate(BLOCKED, [f"#tab-{panel}", 3])
        settle(page)
    page.locator("#tab-sampling").click()  # closes it
    page.evaluate(ZOOMING)
    frames(page, 4)  # the values of all views are there afterwards
    gaps = frames(page, 8)
    page.close()
    return {
        "blocked_ms": {name: round(value, 1) for name, value in blocked.items()},
        "zoom_frames_per_second": 1000 * len(gaps) / sum(gaps),
        "zoom_frame_p95_ms": at_share(gaps, 0.95),
        "zoom_frame_longest_ms": gaps[-1],
    }


def decode(url: str, model: str) -> float:
    """Tokens per second of a client."""
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


def rates(browser: Browser, url: str, model: str, turns: int) -> dict[str, list[float]]:
    """Decode rates of a client without the page, with it, and with its list of requests, in turn.

    The first answer after a rest is slower: it is not measured.
    """
    found: dict[str, list[float]] = {"closed": [], "open": [], "requests": []}

    def measure(name: str) -> None:
        decode(url, model)
        found[name].append(decode(url, model))

    for _ in range(turns):
        measure("closed")
        page = opened(browser, url)
        fill(page, "The capital of France is", tokens=20)
        run_form(page, 60_000)
        settle(page)
        measure("open")
        list_stages(page)
        page.locator("#tab-live").click()
        measure("requests")
        page.close()
    return found


def kept(name: str, value: float) -> bool:
    """Whether a figure keeps its floor. A frame more or less in some seconds is no difference."""
    way, floor = FLOORS[name]
    return value <= floor if way == "at most" else round(value, 2 if floor < 2 else 0) >= floor


def main() -> None:
    """Measure, and print the figures and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--long", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=9)
    asked = parser.parse_args()
    (url, app), found = server(asked.model), dict[str, Any]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        paints = [first_paint(browser, url) for _ in range(1 + asked.turns)]
        for name, times in zip(("first_paint", "form", "finished_picture"), zip(*paints)):
            found[f"{name}_seconds"] = statistics.median(times[1:])
        found["first_visit_finished_picture_seconds"] = paints[0][2]
        found |= replay(browser, url)
        found |= all_updates(browser, url, app, asked.tokens)
        found |= long_text(browser, url, asked.long)
        speeds = rates(browser, url, asked.model, asked.turns)
        browser.close()
    for name, values in speeds.items():
        found[f"decode_{name}"] = statistics.median(values)
    for name, key in (("open", "decode_ratio"), ("requests", "decode_ratio_requests")):
        found[key] = statistics.median(b / a for a, b in zip(speeds["closed"], speeds[name]))
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    for name, value in found.items():
        floor = FLOORS.get(name)
        said = f"  {'keeps' if kept(name, value) else 'MISSES'} {floor[0]} {floor[1]}" if floor else ""
        print(f"{name:28} {value}{said}")
    machine = {name: value for name, value in facts().items() if name in ("cpu", "instructions", "pellucid")}
    floors = {name: {"floor": floor, "kept": kept(name, found[name])} for name, (_, floor) in FLOORS.items()}
    print(json.dumps({**machine, **vars(asked), **found, "floors": floors}))


if __name__ == "__main__":
    main()
