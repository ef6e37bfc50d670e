"""Attribution graphs: what is drawn, pointer and keyboard, pruning, groups, files from anybody, the server's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import graphs
import pytest
from support.hostile_runs import run_bytes
from support.page_server import PageServer
from support.page_visit import HOSTILE, SECONDS, Visit, is_fitting, serious

from pellucid.web.bundle import graph_html

FEATURE, LOGIT, TEXAS = "2_9_5", "5_900_5", "E_12_4"
PIXELS = """([selector, x, y]) => {
    const canvas = document.querySelector(selector), scale = canvas.width / parseFloat(canvas.style.width);
    return [...canvas.getContext("2d").getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data];
}"""
"""Red, green, blue and opacity of a canvas at a place of the picture."""


def opened(browser: Any, folder: Path, document: dict[str, Any], wait: str = ".node", **how: Any) -> Visit:
    """The page of a graph alone, in a file."""
    path = folder / "graph.html"
    path.write_text(graph_html(document), encoding="utf-8")
    return Visit(browser, path.as_uri(), wait=wait, **how)


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Visit]:
    """The page of the small graph. At its end it has said nothing."""
    made = opened(browser, tmp_path, graphs.small())
    yield made
    assert made.said == []
    made.close()


def node(visit: Visit, name: str) -> Any:
    return visit.page.locator(f".node[data-id='{name}']")


def side(visit: Visit) -> Any:
    return visit.page.locator(".graph-side")


def place(visit: Visit, name: str) -> tuple[float, float]:
    """The place of a node in the picture."""
    found = re.findall(r"[\d.]+", node(visit, name).get_attribute("transform"))
    return float(found[0]), float(found[1])


def links(visit: Visit, title: str) -> list[tuple[str, float]]:
    """The listed inputs or outputs of the chosen node: names and weights."""
    rows = visit.page.get_by_role("list", name=title).locator("li").all()
    return [
        (one.locator("button").inner_text(), float(one.locator(".num").inner_text().replace("−", "-"))) for one in rows
    ]


def has_focus(visit: Visit, name: str) -> bool:
    found: bool = node(visit, name).evaluate("(one) => one === document.activeElement")
    return found


def test_tokens_are_columns_and_layers_are_rows(visit: Visit) -> None:
    page = visit.page
    assert page.locator(".node").count() == 11
    assert page.locator(".graph-svg .token").all_text_contents() == [one.replace(" ", "·") for one in graphs.TOKENS]
    layers = ["logits", "layer 3", "layer 2", "layer 1", "layer 0", "embeddings"]
    rows = page.locator(".graph-svg.layers text").all()
    assert [one.text_content() for one in sorted(rows, key=lambda one: one.bounding_box()["y"])] == layers
    heights = [place(visit, name)[1] for name in (LOGIT, "3_8_5", FEATURE, "1_4_5", "0_7_4", TEXAS)]
    assert heights == sorted(heights)
    assert place(visit, TEXAS)[0] == place(visit, "0_7_4")[0] < place(visit, FEATURE)[0]
    shapes = {
        one.get_attribute("class").split()[1]: one.locator(".shape").get_attribute("d")
        for one in page.locator(".node").all()
    }
    kinds = {"embedding", "feature", "neuron", "head", "error", "logit"}
    assert shapes.keys() == kinds
    assert len(set(shapes.values())) == len(kinds), "each kind has a shape of its own"
    assert page.locator(".graph-legend li").count() == len(kinds)
    assert page.locator("canvas.all").get_attribute("data-edges") == "12"
    x, y = place(visit, FEATURE)
    below = page.evaluate(PIXELS, ["canvas.all", x, (y + place(visit, LOGIT)[1]) / 2])
    assert below[3] > 60, "the strongest edge leads straight up"
    assert below[2] > below[0] + 60, "its weight is positive: blue"


def test_a_node_under_the_pointer_shows_its_edges(visit: Visit) -> None:
    page = visit.page
    node(visit, FEATURE).hover()
    assert page.locator("canvas.own").get_attribute("data-edges") == "6"
    assert page.locator(".graph-plot.focused").count() == 1, "all other edges are faint"
    assert page.locator(".linked .shape.plus").count() == 4
    assert page.locator(".linked .shape.minus").count() == 2
    assert side(visit).locator("h4").inner_text() == "say Austin"
    assert links(visit, "Inputs") == [
        ("head 2.1", 1.0),
        ("feature 1.3", 0.75),
        ("state names", 0.5),
        ("neuron 1.4", -0.25),
    ]
    assert [weight for _, weight in links(visit, "Outputs")] == [4.0, -2.0]
    facts = side(visit).locator(".graph-facts").inner_text()
    for text in ("feature", "·is", "layer 2", "4.000", "40.0 %", "·Austin +3.250", "·Dallas -1.500"):
        assert text in facts
    page.mouse.move(5, 5)
    assert page.locator(".graph-plot.focused").count() == 0
    assert serious(page) == []


def test_the_keyboard_moves_between_nodes(visit: Visit) -> None:
    page = visit.page
    assert page.locator(".node[tabindex='0']").count() == 1, "one stop for the tab key"
    names = [node(visit, name).get_attribute("aria-label") for name in (TEXAS, FEATURE)]
    assert names == [" Texas, embedding, token “·Texas”", "say Austin, feature, layer 2, token “·is”"]
    node(visit, LOGIT).focus()
    for key, name in (
        ("ArrowDown", "3_8_5"),
        ("ArrowDown", FEATURE),
        ("ArrowRight", "2_1_5"),
        ("ArrowLeft", FEATURE),
        ("ArrowUp", "3_8_5"),
        ("ArrowLeft", "0_3_4"),
        ("ArrowLeft", "0_3_4"),
        ("ArrowDown", FEATURE),
    ):
        page.keyboard.press(key)
        assert has_focus(visit, name), (key, name)
        assert node(visit, name).get_attribute("tabindex") == "0"
    assert side(visit).locator("h4").inner_text() == "say Austin"
    page.keyboard.press("Enter")
    assert node(visit, FEATURE).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert node(visit, FEATURE).get_attribute("aria-pressed") == "false"
    page.keyboard.press("Escape")
    assert page.locator(".graph-plot.focused").count() == 0


def test_the_list_at_the_side_works_without_the_picture(visit: Visit) -> None:
    page = visit.page
    node(visit, LOGIT).focus()
    page.get_by_role("list", name="Inputs").get_by_role("button", name="say Austin").press("Enter")
    assert has_focus(visit, FEATURE)
    page.get_by_role("list", name="Inputs").get_by_role("button", name="state names").click()
    assert has_focus(visit, "0_7_4")
    assert links(visit, "Inputs") == [("Texas", 3.0)]
    above = page.get_by_role("button", name="node in a layer above")
    above.focus()
    for title in ("neuron 1.4", "say Austin"):
        page.keyboard.press("ArrowUp")
        assert side(visit).locator("h4").inner_text() == title
        assert above.evaluate("(one) => one === document.activeElement"), "the same key goes on"
    page.get_by_role("button", name="next node in this layer").click()
    assert side(visit).locator("h4").inner_text() == "head 2.1"
    page.get_by_role("button", name="Pin", exact=True).press("Enter")
    assert node(visit, "2_1_5").get_attribute("aria-pressed") == "true"


def test_the_slider_keeps_a_share_of_the_influence(visit: Visit) -> None:
    slider, shown = visit.page.get_by_role("slider"), visit.page.locator(".node")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0.2", "0.98")
    for share, count in (("0.5", 7), ("0.2", 3), ("0.98", 11)):
        slider.fill(share)
        assert shown.count() == count, "logits, and nodes up to the share"
    node(visit, "3_8_5").click()
    slider.fill("0.2")
    assert shown.count() == 4, "a pinned node stays"
    assert "4 of 11 nodes, 2 edges" in visit.page.locator(".graph-tools").inner_text()
    slider.focus()
    visit.page.keyboard.press("ArrowRight")
    assert slider.input_value() == "0.21"


def test_pinned_nodes_become_a_group_that_is_saved_and_read_again(browser: Any, visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    for name in ("0_7_4", "1_3_2", "3_8_5"):
        node(visit, name).click()
    assert page.locator(".label").all_text_contents()[0] == "feature 3.8", "pinned nodes have labels"
    page.get_by_role("checkbox", name="feature 3.8").uncheck()
    page.get_by_label("name of the group").fill("Texas & capital")
    page.keyboard.press("Enter")
    group = page.locator(".node.group")
    assert group.count() == 1
    assert page.locator(".node").count() == 10
    assert group.evaluate("(one) => one === document.activeElement")
    assert side(visit).locator("h4").inner_text() == "Texas & capital"
    assert links(visit, "Inputs") == [("Texas", 3.0), ("capital", 2.0)]
    assert links(visit, "Outputs") == [("head 2.1", 1.5), ("say Austin", 1.25)], "edges are sums"
    assert serious(page) == []
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename == "texas.json"
    download.value.save_as(tmp_path / "texas.json")
    page.get_by_text("Saved as texas.json.").wait_for()
    before, saved = graphs.small(), json.loads((tmp_path / "texas.json").read_text())
    asked = {"pinnedIds": ["0_7_4", "1_3_2", "3_8_5"], "supernodes": [["Texas & capital", "0_7_4", "1_3_2"]]}
    assert saved == {**before, "qParams": {**before["qParams"], **asked}}
    again = opened(browser, tmp_path, saved)
    assert again.page.locator(".node.group").count() == 1
    assert again.page.locator(".node.pinned").count() == 1
    again.page.get_by_role("button", name="Ungroup").click()
    assert again.page.locator(".node").count() == 11
    assert again.page.locator(".node.pinned").count() == 3
    assert again.said == []
    again.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_a_graph_on_every_screen(browser: Any, tmp_path: Path, size: str, scheme: str) -> None:
    document = graphs.small()
    document["qParams"] |= {"pinnedIds": ["1_4_5", FEATURE], "supernodes": [["group", "0_7_4", "1_3_2"]]}
    visit = opened(browser, tmp_path, document, size=size, scheme=scheme)
    assert is_fitting(visit.page)
    assert serious(visit.page) == []
    node(visit, FEATURE).focus()
    assert serious(visit.page) == []
    assert is_fitting(visit.page)
    colour = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(int(one) for one in re.findall(r"\d+", colour)) < 60) == (scheme == "dark")
    x, y = place(visit, FEATURE)
    red, green, blue, opacity = visit.page.evaluate(PIXELS, ["canvas.own", x, (y + place(visit, LOGIT)[1]) / 2])
    wanted = {"light": (0x2A, 0x6F, 0xB0), "dark": (0x6A, 0xAA, 0xF0)}[scheme]
    assert opacity > 200
    assert all(abs(a - b) < 40 for a, b in zip((red, green, blue), wanted))
    assert visit.said == []
    visit.close()


def test_a_large_graph_stays_fluid(browser: Any, tmp_path: Path) -> None:
    """1,500 of 3,000 nodes and the edges between them, on a screen where the pointer moves over the nodes."""
    visit = opened(browser, tmp_path, graphs.large(3000, 20_000))
    page = visit.page
    assert 300 <= page.locator(".node").count() <= 600, "the first picture is of some hundred nodes"
    page.get_by_role("slider").fill("1")
    page.get_by_text("The picture has the 1,500 nodes with the most influence.").wait_for()
    assert page.locator(".node").count() == 1500
    assert page.locator("canvas.all").get_attribute("data-edges") == "3000"
    frames = page.evaluate("""async () => {
        const nodes = [...document.querySelectorAll(".node")].slice(0, 60), times = [];
        for (const node of nodes) {
            const start = performance.now();
            node.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b);
    }""")
    assert page.locator(".graph-plot.focused").count() == 1
    assert frames[30] < 150, "23 ms where other programs use the two cores too"
    assert visit.said == []
    visit.close()


def wrong_documents() -> dict[str, tuple[Any, str]]:
    """Documents that are refused, and a part of the message, by name."""

    def changed(place: str, value: Any, at: int = 0, part: str = "nodes") -> dict[str, Any]:
        document = graphs.small()
        document[part][at][place] = value
        return document

    asked = graphs.small()
    asked["qParams"]["supernodes"] = [["name", 5]]
    tokens = graphs.small()
    tokens["metadata"]["prompt_tokens"] = ["a"] * 1_000_000
    return {
        "a list": ([1, 2], "is no attribution graph"),
        "no nodes": ({**graphs.small(), "nodes": None}, "is no attribution graph"),
        "numbers for nodes": ({**graphs.small(), "nodes": [0] * 1_000_000}, "1,000,000 nodes"),
        "a million tokens": (tokens, "1,000,000 tokens"),
        "a node without an id": (changed("node_id", None), "nodes[0].node_id"),
        "an object as a label": (changed("clerp", {"toString": 1}, 3), "nodes[3].clerp"),
        "a token that there is not": (changed("ctx_idx", 6), "nodes[0].ctx_idx is no token of the prompt"),
        "a half token": (changed("ctx_idx", 0.5), "nodes[0].ctx_idx"),
        "a layer of text": (changed("layer", "above"), "nodes[0].layer"),
        "a layer far above": (changed("layer", "9999"), "nodes[0].layer"),
        "influence of text": (changed("influence", "much"), "nodes[0].influence"),
        "logits of one number": (changed("top_logits", [5]), "nodes[0].top_logits"),
        "a weight of text": (changed("weight", "1", 2, "links"), "links[2].weight"),
        "a link to a number": (changed("target", 9, 1, "links"), "links[1]"),
        "a group with a number": (asked, "qParams.supernodes"),
    }


def test_files_from_anybody(browser: Any, server: PageServer, tmp_path: Path) -> None:
    """A wrong file is refused with one line. What can be drawn is drawn, and no text is HTML."""
    visit = Visit(browser, server.url)
    page, error = visit.page, visit.page.locator("p.error")
    page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    files = {name: (json.dumps(one), part) for name, (one, part) in wrong_documents().items()}
    files |= {"half a file": ('{"metadata": ', "is no JSON"), "many brackets": ("[" * 200_000, "is no JSON")}
    for name, (text, part) in files.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        page.locator("input[type=file]").set_input_files(path)
        error.filter(has_text=f"{name}.json").wait_for(timeout=10_000)
        said = error.inner_text()
        assert part in said
        assert "\n" not in said
        assert len(said) < 200
    strange = graphs.small()
    for one in strange["nodes"]:
        one["clerp"] = HOSTILE
    strange["nodes"] += [dict(strange["nodes"][2]), graphs.node("1", 99, 0, "__proto__", influence=1e300)]
    strange["nodes"][2]["top_logits"] = [[HOSTILE, 1e300]] * 100_000
    strange["links"] += [graphs.link("nobody", FEATURE, 1), graphs.link("__proto__", FEATURE, 1)]
    strange["links"] += [graphs.link(FEATURE, FEATURE, 1e308), graphs.link("1_99_0", FEATURE, 1e-320)]
    strange["metadata"] |= {"slug": "../../x", "prompt_tokens": [HOSTILE, *graphs.TOKENS[1:]]}
    strange["qParams"] = {"pinnedIds": ["nobody", FEATURE], "supernodes": [[HOSTILE, "nobody", "0_7_4"]]}
    (tmp_path / "strange.json").write_text(json.dumps(strange))
    page.locator("input[type=file]").set_input_files(tmp_path / "strange.json")
    page.locator(".node.group").focus()
    assert side(visit).locator("h4").inner_text().startswith("<img src=x onerror=alert(1)>")
    assert page.locator(".graph img, .graph script, .graph-side iframe").count() == 0
    notes = " ".join(page.locator(".graph > .note").all_inner_texts())
    assert "2 edges of nodes that the graph does not have: not drawn." in notes
    assert "1 node with the id of a node before: not drawn." in notes
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert "/" not in download.value.suggested_filename
    assert serious(page) == []
    many = graphs.small()
    many["links"] *= 20_000
    (tmp_path / "many.json").write_text(json.dumps(many))
    page.locator("input[type=file]").set_input_files(tmp_path / "many.json")
    page.get_by_text("Of 240,000 edges the 100,000 strongest are drawn.").wait_for(timeout=SECONDS)
    assert visit.said == []
    visit.close()


def test_a_dropped_graph_opens_and_closes(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    page = visit.page
    dropped = page.evaluate_handle(
        """(text) => {
            const data = new DataTransfer();
            data.items.add(new File([text], "texas.json", { type: "application/json" }));
            return data;
        }""",
        json.dumps(graphs.small()),
    )
    page.dispatch_event("textarea", "dragover", {"dataTransfer": dropped})
    page.dispatch_event("textarea", "drop", {"dataTransfer": dropped})
    page.get_by_role("heading", name="Attribution graph").wait_for()
    assert page.locator(".node").count() == 11
    assert "texas.json" in page.locator("header").inner_text()
    assert serious(page) == []
    page.get_by_role("button", name="close the file").click()
    page.locator("textarea").wait_for(timeout=SECONDS)
    assert visit.said == []
    visit.close()


def test_the_panel_asks_the_server_for_a_graph(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    kinds = {"sae": "SAE", "x": "transcoder", "y": "cross-layer transcoder"}

    def with_dictionaries(route: Any) -> None:
        facts = route.fetch().json()
        named = {name: {"kind": kind, "layers": {}} for name, kind in kinds.items()}
        route.fulfill(json={**facts, "dictionaries": named})

    visit.page.route("**/look/models/learned", with_dictionaries)
    visit.choose("learned")
    visit.write("some words", tokens=3, temperature=0)
    page, asked = visit.page, list[Any]()

    def answer(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        if len(asked) == 1:
            route.fulfill(status=400, json={"error": {"message": "dictionary='x': there is none"}})
        else:
            route.fulfill(json=graphs.small())

    page.route("**/look/graph", answer)
    panel = visit.open("attribution")
    assert asked == [], "the server computes nothing until somebody asks"
    button = panel.get_by_role("button", name="Attribution graph")
    chosen = panel.get_by_label("nodes are")
    assert chosen.locator("option").all_inner_texts() == ["neurons and heads", "features of x", "features of y"]
    chosen.select_option("x")
    button.click()
    panel.get_by_text("dictionary='x': there is none").wait_for()
    chosen.select_option("")
    panel.get_by_label("nodes", exact=True).fill("200")
    button.click()
    panel.locator(".node").first.wait_for()
    assert panel.locator(".node").count() == 11
    assert serious(page, "#stage-attribution") == []
    first, second = asked
    assert first.keys() == {"model", "prompt", "dictionary", "nodes"}
    assert (first["dictionary"], first["nodes"]) == ("x", 500)
    assert second.keys() == {"model", "prompt", "nodes"}
    assert (second["model"], second["nodes"]) == ("learned", 200)
    ids = max((one["prompt"] for one in visit.answers().values() if "prompt" in one), key=len)
    assert ids[: len(second["prompt"])] == second["prompt"]
    assert len(second["prompt"]) == visit.chosen() + 1
    visit.go(token=0)
    assert panel.locator(".node").count() == 0, "another token has another graph"
    assert [one for one in visit.said if "400" not in one] == []
    visit.close()


def test_the_graph_of_the_server_is_drawn(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("learned")
    visit.write("some words", tokens=3, temperature=0)
    panel = visit.open("attribution")
    panel.get_by_label("nodes").first.fill("60")
    with visit.page.expect_response("**/look/graph", timeout=SECONDS) as answer:
        panel.get_by_role("button", name="Attribution graph").click()
    panel.locator(".node").first.wait_for(timeout=SECONDS)
    document = answer.value.json()
    slider = panel.get_by_role("slider").last
    slider.fill(slider.get_attribute("max"))
    assert {one.get_attribute("data-id") for one in panel.locator(".node").all()} == {
        one["node_id"] for one in document["nodes"]
    }
    assert panel.locator("canvas.all").get_attribute("data-edges") == str(min(3000, len(document["links"])))
    assert not panel.locator(".node.other").count(), "the page knows all kinds of the server"
    assert serious(visit.page, "#stage-attribution") == []
    assert visit.said == []
    visit.close()


def test_a_recorded_run_has_no_button_for_a_graph(browser: Any, server: PageServer, tmp_path: Path) -> None:
    answer = {"piece": "c", "logit": 1.0, "contributions": []}
    asked = {"prompt": [1], "token": 2}
    (tmp_path / "one.run").write_bytes(run_bytes({}, answers=[["/look/attribution", asked, answer]]))
    visit = Visit(browser, server.url)
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "one.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for()
    panel = visit.open("attribution")
    assert panel.inner_text()
    assert panel.get_by_role("button", name="Attribution graph").count() == 0
    visit.close()


def test_a_graph_alone_is_one_small_file(tmp_path: Path, browser: Any) -> None:
    text = graph_html(graphs.small())
    assert len(text) < 100_000
    assert graph_html(graphs.small()) == text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "import " not in re.sub(r"//.*", "", text.partition('<script type="module">')[2])
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    with pytest.raises(ValueError, match="not JSON compliant"):
        graph_html(graphs.document([graphs.node("0", 1, 0, "neuron", influence=float("nan"))], [], ["a"]))
    hostile = graphs.small()
    hostile["metadata"] |= {"prompt": HOSTILE, "slug": HOSTILE}
    visit = opened(browser, tmp_path, hostile)
    visit.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    assert visit.page.title().startswith("<img src=x")
    assert visit.said == []
    visit.close()
    wrong = opened(browser, tmp_path, {"metadata": {}}, wait="#app:not(:has(*))")
    assert "is no attribution graph" in wrong.page.locator("#app").inner_text()
    wrong.close()
