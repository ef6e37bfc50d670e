"""Widgets of notebooks: the script in a real browser as anywidget calls it, and the Python side without Jupyter."""

from __future__ import annotations

import json
import sys
from typing import Any

import graphs
import numpy as np
import pytest
from support.browser import TEXT
from support.page_visit import HOSTILE, Visit, serious

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.trace import logit_lens
from pellucid.web.bundle import one_script, widget_script, widget_style

NOTEBOOK = """<!doctype html><html lang="en"><head><title>notebook</title>
    <style>body {{ background: {ground}; }} h1 {{ color: rgb(1, 2, 3); }}</style></head>
    <body><main><h1>a notebook</h1><div id="cell"></div></main></body></html>"""
# Loads and draws a widget as anywidget does, with a model as its widgets get it.
FAKE = """async ([script, style, state]) => {
    const listeners = {}, module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    const sheet = document.head.appendChild(document.createElement("style"));
    sheet.textContent = style;
    globalThis.saved = 0;
    globalThis.model = {
        get: (name) => state[name],
        set: (name, value) => {
            state[name] = value;
            for (const one of listeners[`change:${name}`] ?? []) one();
        },
        save_changes: () => (globalThis.saved += 1),
        on: (name, call) => (listeners[name] = [...(listeners[name] ?? []), call]),
        off: (name, call) => (listeners[name] = listeners[name].filter((one) => one !== call)),
    };
    globalThis.end = await module.default.render({ model, el: document.getElementById("cell") });
    globalThis.listening = () => Object.values(listeners).flat().length;
}"""


class Notebook(Visit):
    """A page with one widget."""

    def __init__(self, browser: Any, kind: str, data: Any, ground: str = "white") -> None:
        super().__init__(browser, "about:blank", wait="html")
        self.asked = list[str]()
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
        self.page.set_content(NOTEBOOK.format(ground=ground))
        state = {"kind": kind, "data": json.loads(json.dumps(data))}
        self.page.evaluate(FAKE, [widget_script(), widget_style(), state])


@pytest.fixture
def widgets() -> Any:
    pytest.importorskip("anywidget", reason="pip install 'pellucid[notebook]'")
    from pellucid.integrations import widgets

    return widgets


def test_a_widget_of_a_graph_saves_into_its_data(browser: Any) -> None:
    notebook = Notebook(browser, "graph", graphs.small())
    page = notebook.page
    assert page.locator(".pellucid .node").count() == 11
    page.locator(".node[data-id='0_7_4']").click()
    page.locator(".node[data-id='1_3_2']").click()
    page.get_by_label("name of the group").fill("inputs")
    page.get_by_role("button", name="Group the selected nodes").click()
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved in the widget’s data.").wait_for()
    assert page.evaluate("saved") == 1
    asked = page.evaluate("model.get('data').qParams")
    assert asked["supernodes"] == [["inputs", "0_7_4", "1_3_2"]]
    assert page.locator(".node.group").evaluate("(one) => one === document.activeElement || !!one"), "it stays"
    page.evaluate("(data) => model.set('data', data)", graphs.small())
    page.locator(".node.group").wait_for(state="detached")
    assert page.locator(".node").count() == 11, "another graph is drawn"
    assert page.locator("h1").evaluate("(one) => getComputedStyle(one).color") == "rgb(1, 2, 3)"
    assert serious(page, ".pellucid") == []
    page.evaluate("end()")
    assert page.locator(".node").count() == 0
    assert page.evaluate("listening()") == 0
    assert [one for one in notebook.asked if not one.startswith("blob:")] == []
    assert notebook.said == []
    notebook.close()


@pytest.mark.parametrize("ground", ["white", "oklch(1 0 0)", "rgb(20, 20, 24)", "oklch(0.2 0.01 250)"])
def test_a_widget_has_the_colours_of_its_notebook(browser: Any, ground: str) -> None:
    notebook = Notebook(browser, "graph", graphs.small(), ground)
    paper = notebook.page.locator(".graph-scroll").evaluate("(one) => getComputedStyle(one).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if ground in ("white", "oklch(1 0 0)") else "rgb(20, 25, 28)")
    assert serious(notebook.page, ".pellucid") == []
    notebook.close()


def test_attention_weights(browser: Any, widgets: Any) -> None:
    tokens = ["The", " cat", HOSTILE, " mat"]
    weights = np.tril(np.random.default_rng(3).random((3, 4, 4)).astype(np.float32))
    weights /= weights.sum(-1, keepdims=True)
    widget = widgets.show((tokens, weights))
    notebook = Notebook(browser, widget.kind, widget.data)
    page = notebook.page

    def is_row(head: int, token: int) -> bool:
        """The list has this row of the weights."""
        found = {
            int(one.locator(".id").inner_text()): float(one.locator(".num").get_attribute("data-weight"))
            for one in page.locator("ol.near li").all()
        }
        wanted = {at: p for at, p in enumerate(weights[head, token].tolist()) if p > 0}
        return found == pytest.approx(wanted, rel=1e-5)

    assert is_row(0, 3), "the last token"
    page.get_by_role("button", name="head 2").click()
    assert is_row(2, 3)
    page.get_by_role("slider").press("ArrowUp")
    assert is_row(2, 2)
    assert page.locator(".pellucid img").count() == 0
    assert serious(page, ".pellucid") == []
    assert notebook.said == []
    notebook.close()


def test_a_lens_and_a_run(browser: Any, widgets: Any) -> None:
    with pellucid.load("smollm2", threads=2) as llm:
        found = logit_lens(llm, "The capital of France is", top=2)
        run = llm.record("The capital of France is", "sample.probability", max_new_tokens=4, seed=1)
    lens = widgets.show(found)
    assert lens.kind == "lens"
    notebook = Notebook(browser, lens.kind, lens.data)
    last = notebook.page.locator(".lens tbody tr").last.locator("td")
    assert last.all_inner_texts() == [found.top(-1, t)[0][0].replace(" ", "·").replace("\n", "⏎") for t in range(5)]
    last.first.click()
    assert notebook.page.locator(".lens tr.chosen").count() == 1
    assert serious(notebook.page, ".pellucid") == []
    assert notebook.said == []
    notebook.close()
    shown = widgets.show(run)
    assert shown.kind == "run"
    notebook = Notebook(browser, shown.kind, shown.data)
    assert "".join(run.pieces) in notebook.page.locator(TEXT).text_content()
    titles = [one.get_attribute("title") for one in notebook.page.locator(f"{TEXT} .made").all()]
    assert len(titles) == len(run.ids)
    assert all("probability" in one for one in titles)
    steps = notebook.page.get_by_text("The steps of this run:").inner_text()
    assert steps.count("→") == len(run.chain) - 1
    assert all(one["name"] in steps for one in run.chain)
    assert serious(notebook.page, ".pellucid") == []
    assert notebook.said == []
    notebook.close()


@pytest.mark.parametrize(
    ("kind", "data", "part"),
    [
        ("other", {}, "it has no kind other"),
        ("__proto__", {}, "it has no kind __proto__"),
        ("graph", {"nodes": 5}, "is no attribution graph"),
        ("attention", {"tokens": ["a"], "weights": {"shape": [1, 2, 2], "data": ""}}, "must have tokens"),
        ("attention", {"tokens": ["a"], "weights": {"shape": [1, 1, 1], "data": ""}}, "must have tokens"),
    ],
)
def test_what_cannot_be_shown_is_said(browser: Any, kind: str, data: Any, part: str) -> None:
    notebook = Notebook(browser, kind, data)
    assert part in notebook.page.locator(".pellucid .error").inner_text()
    notebook.close()


def test_things_of_python(widgets: Any) -> None:
    class Found:
        def as_dict(self) -> dict[str, Any]:
            return graphs.small()

    assert widgets.show(graphs.small()).data == widgets.show(Found()).data == graphs.small()
    state = widgets.show(graphs.small()).get_state()
    assert {"kind", "data", "_esm", "_css"} <= state.keys()
    for thing in (5, {"nodes": []}, (["a"], np.ones((1, 2, 2))), (["a"], np.ones((0, 1, 1)))):
        with pytest.raises(InvalidRequest, match=r"attribution graph|need"):
            widgets.show(thing)
    with pytest.raises(InvalidRequest, match="16,777,216 numbers at most"):
        widgets.show((["a"] * 4100, np.broadcast_to(np.float32(0), (1, 4100, 4100))))


def test_without_anywidget_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "pellucid.integrations.widgets", raising=False)
    with pytest.raises(ImportError, match=r"pellucid\[notebook\]"):
        import pellucid.integrations.widgets  # noqa: F401


def test_modules_become_one_script() -> None:
    files = {
        "a.js": b'import { b as other, c } from "/web/b.js";\nexport function start() { return other + c(); }\n',
        "b.js": b'import { d } from "/web/vendor.js";\nexport const b = d;\nexport async function c() {}\n',
        "vendor.js": b"var x=1;export{x as d,x as e};\n",
    }
    script = one_script(files, "a.js", ["start"])
    assert [line for line in script.splitlines() if line.startswith("// ")] == ["// vendor.js", "// b.js", "// a.js"]
    assert "const { b: other, c } = $module1;" in script
    assert "return { d: x };" in script
    assert script.endswith("const { start } = $module2;\n")
    for name, text in (("a circle", 'import { a } from "/web/a.js";'), ("export default", "export default 5;")):
        with pytest.raises(ValueError, match=r"import each other|has a form"):
            one_script({"a.js": text.encode()}, "a.js"), name
