"""Recorded runs and reports: the page without a server's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import TEXT
from support.hostile_runs import PATTERN, SHAPES, run_bytes
from support.page_server import PageServer
from support.page_visit import HOSTILE, SECONDS, Visit, serious

import pellucid
from pellucid.trace.explanation import explain


def test_a_report_is_the_page_without_a_server(browser: Any, tmp_path: Path) -> None:
    with pellucid.load("smollm2", threads=2) as llm:
        found = explain(llm, HOSTILE, max_new_tokens=3, temperature=0)
        (tmp_path / "report.html").write_text(found.html(), encoding="utf-8")
    visit, asked = Visit(browser, "about:blank", wait="html"), list[str]()
    visit.page.on("request", lambda one: asked.append(one.url) if not one.url.startswith("data:") else None)
    visit.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    visit.page.goto((tmp_path / "report.html").as_uri())
    visit.page.locator(TEXT).wait_for(timeout=SECONDS)
    wanted = {"tokens", "embeddings", "positions", "blocks", "attention", "feedforward", "lens", "attribution"}
    assert wanted | {"sampling", "detokenizer"} == set(visit.stages())
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert len(section.locator(".body").inner_text()) > 40
        assert serious(visit.page, f"#stage-{stage}") == [], stage
    assert visit.page.locator(".ribbon:not([data-residual])").count() <= 1, "the last token was not read"
    assert visit.page.locator(".candidate").count() > 4
    assert serious(visit.page) == []
    assert visit.page.locator("#app img, #app iframe").count() == 0
    assert [one.removeprefix("file://") for one in asked] == [str(tmp_path / "report.html")]
    best = visit.open("sampling").locator(".bars tbody tr").first
    assert "#" not in best.locator("th").inner_text()
    assert visit.said == []
    visit.close()


def test_a_recorded_run_opens_without_a_model(browser: Any, server: PageServer, tmp_path: Path) -> None:
    points = (
        *("embed", "position.angles", "blocks.*.residual", "blocks.*.attention.output", "blocks.*.attention.pattern"),
        *("blocks.*.feedforward.hidden", "project.logits", "sample.probability"),
    )
    with pellucid.load("smollm2", threads=2) as llm:
        run = llm.record("The capital of France is", *points, max_new_tokens=5, temperature=0)
    run.save(tmp_path / "paris.run")
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.write("a text that stays", tokens=4)
    before = visit.text()
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "paris.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for()
    assert "".join(run.pieces) in visit.text().replace("⏎", "")
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert serious(visit.page, f"#stage-{stage}") == [], stage
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
    assert visit.text() == before
    assert visit.page.locator("header select").input_value() == "mixture"
    assert visit.said == []
    visit.close()


def test_runs_of_absurd_sizes_do_not_hold_the_page(browser: Any, server: PageServer, tmp_path: Path) -> None:
    many = [{"id": 5, "parent": 5, "token": 1, "piece": "x", "score": 0, "state": "running"}] * 40
    tree = [{"id": 5, "parent": 0, "token": 1, "piece": "x", "score": 0, "state": "running"}, *many]
    refused = {
        **{name: run_bytes({point: ("F32", shape)}) for name, (point, shape) in SHAPES.items()},
        "1,000,000 heads": run_bytes({PATTERN: ("F32", [1_000_000, 1, 1])}),
        "a part of many heads": run_bytes({PATTERN: ("F32", [1, 3, 3])}, parts={PATTERN: {"heads": [900_000]}}),
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
    points = ("embed[tokens=2:]", "blocks.*.residual[tokens=2:]", "blocks.0.attention.pattern[heads=1,3; tokens=2:]")
    with pellucid.load("smollm2", threads=2) as llm:
        run = llm.record("The capital of France is", *points, max_new_tokens=3, temperature=0)
    run.save(tmp_path / "parts.run")
    visit = Visit(browser, server.url)
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "parts.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for()
    for stage in ("embeddings", "positions", "blocks", "attention"):
        assert visit.open(stage).locator(".error").all_text_contents() == [], stage
    section = visit.open("attention")
    section.get_by_role("button", name="head 3", exact=True).click()
    visit.page.locator(".column.text .token[data-token='5']").click()
    section.locator("h4", has_text="head 3").first.wait_for()
    best = section.locator("ol.near li").first.inner_text().split()
    row = run["blocks.0.attention.pattern"][1, 3]
    assert int(best[1]) == int(row.argmax())
    assert abs(float(best[2]) - 100 * float(row.max())) < 0.06
    assert visit.said == []
    visit.close()


def test_a_notebook_shows_the_page_of_a_run_in_a_sandbox(browser: Any, tmp_path: Path) -> None:
    with pellucid.load("smollm2", threads=2) as llm:
        points = ("embed", "blocks.*.residual", "blocks.*.attention.pattern")
        run = llm.record(HOSTILE, *points, max_new_tokens=3, temperature=0)
    shown = f"<!doctype html><script>window.secret = 1</script><h1>a notebook</h1>{run._repr_html_()}"
    (tmp_path / "notebook.html").write_text(shown, encoding="utf-8")
    visit, asked = Visit(browser, "about:blank", wait="html"), list[str]()
    visit.page.on("request", lambda one: asked.append(one.url) if not one.url.startswith("data:") else None)
    visit.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    visit.page.goto((tmp_path / "notebook.html").as_uri())
    frame = visit.page.frame_locator("iframe")
    frame.locator(TEXT).wait_for(timeout=SECONDS)
    assert frame.locator(".error").all_text_contents() == []
    frame.locator(".picture-box").first.wait_for(timeout=SECONDS)
    inner = visit.page.frames[1]
    assert inner.evaluate("() => { try { return parent.secret; } catch { return 'refused'; } }") == "refused"
    assert asked == [(tmp_path / "notebook.html").as_uri()]
    visit.close()
