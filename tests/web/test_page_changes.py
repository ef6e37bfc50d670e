"""Edits of values: before and after, beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.browser import TEXT, list_stages
from support.page_server import PageServer
from support.page_visit import Visit, compared, serious

import pellucid
from pellucid.trace import ablate


def softmax(logits: Any) -> Any:
    weights = np.exp(logits.astype(float) - logits.max())
    return weights / weights.sum()


def test_a_head_is_ablated_and_the_texts_compared(browser: Any, server: PageServer) -> None:
    """Also in the picture: values before the change are dashed, values after it are those that Python records."""
    visit = Visit(browser, server.url, "large")
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=6, temperature=0)
    page = visit.page
    visit.go(block=0, head=2, token=4)
    before = page.locator(".ribbon.chosen").get_attribute("data-residual")
    assert page.locator(".ribbon .before, .candidate .before, .mark.before").count() == 0
    section = visit.open("attention")
    section.get_by_role("button", name="take out this head").click()
    visit.settle()
    changed = page.locator(".ribbon.chosen").get_attribute("data-residual")
    assert changed != before
    assert page.locator(".ribbon .before").count() > 0
    assert page.locator(".candidate .before").count() > 0
    assert "made without the changes" in page.locator(".write").inner_text()
    line = section.locator(".effect").inner_text()
    assert serious(page) == []
    with pellucid.load("smollm2", threads=2) as llm:
        ids = llm.generate("The capital of France is", max_new_tokens=6, temperature=0)
        edits = [ablate("blocks.0.attention.heads[heads=2]")]
        prompt = [*llm.tokenizer.encode("The capital of France is"), *ids.ids]
        with llm.trace("blocks.0.residual", "project.logits") as trace:
            llm.generate(prompt, max_new_tokens=1, temperature=0, edits=edits)
            llm.generate(prompt, max_new_tokens=1, temperature=0)
        wanted = np.linalg.norm(trace.sequences[0]["blocks.0.residual"][4].astype(float))
        now, then = (softmax(one["project.logits"][4]) for one in trace.sequences)
    best = int(then.argmax())
    assert f"{100 * then[best]:.1f} % → {100 * now[best]:.1f} %" in line
    assert abs(float(changed) - wanted) < 1e-5 * wanted
    changes = visit.open("changes")
    plain, after = compared(changes)
    assert plain != after
    assert changes.get_by_role("button", name="the first that differs").count() == 1
    changes.get_by_role("button", name="take back").click()
    assert "Nothing is changed" in changes.inner_text()
    visit.settle()
    assert page.locator(".ribbon.chosen").get_attribute("data-residual") == before
    assert page.locator(".ribbon .before").count() == 0
    assert visit.said == []
    visit.close()


def test_a_head_that_is_taken_out_has_no_arcs(browser: Any, server: PageServer) -> None:
    """Neither by its button, nor by a factor of 0, nor with the whole output of its block."""
    visit = Visit(browser, server.url, "large")
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0)
    page, card = visit.page, visit.page.locator(".number-card")
    arcs, faint, before = (page.locator(one) for one in (".arcs [data-key]", ".faint-arcs path", ".before-arcs path"))
    number = {"block": 3, "head": 1, "token": 4, "key": 2, "point": "blocks.3.attention.pattern"}
    visit.go(**number)
    drawn = arcs.count(), faint.count()
    assert min(drawn) > 0

    def check(block: int, head: int, *, is_out: bool) -> None:
        visit.go(block=block, head=head)
        assert (arcs.count() == 0, faint.count() == 0) == (is_out, is_out), (block, head)
        assert page.locator(".badge").count() == (0 if is_out else 1)
        assert before.count() > 0, "values before the change are dashed"

    card.get_by_role("button", name="take out head 1").click()
    visit.settle()
    check(3, 1, is_out=True)
    check(3, 2, is_out=False)
    assert "they have no effect" not in visit.open("attention").inner_text()
    check(3, 1, is_out=True)
    assert "they have no effect" in visit.open("attention").inner_text()
    page.get_by_role("button", name="head 1", exact=True).first.click()
    assert "takes this head out" in page.locator(".head-view").locator("xpath=../..").inner_text()
    visit.go(**number, view="whole")
    for factor, is_out in (("0.5", False), ("0", True)):
        card.get_by_role("spinbutton", name="factor of head 1").fill(factor)
        card.get_by_role("spinbutton", name="factor of head 1").blur()
        visit.settle()
        check(3, 1, is_out=is_out)
    page.get_by_role("button", name="Undo").click()
    visit.settle()
    assert (arcs.count(), faint.count()) == drawn
    visit.go(point="blocks.3.attention.output", dim=0, key=-1)
    card.get_by_role("button", name="take out the output of attention in block 3").click()
    visit.settle()
    check(3, 1, is_out=True)
    check(3, 5, is_out=True)
    check(4, 5, is_out=False)
    assert visit.said == []
    visit.close()


def test_changes_of_positions_count_as_one(browser: Any, server: PageServer) -> None:
    """The tab and the sentence below it have the same number. Two tables of angles make four edits."""
    visit = Visit(browser, server.url)
    visit.choose("windows")
    visit.write("a text of some words", tokens=3, temperature=0)
    visit.open("positions").get_by_role("button", name="Without positions").click()
    visit.settle()
    tab, changes = visit.page.locator("#tab-changes"), visit.open("changes")
    assert tab.inner_text() == "Changes (1)"
    assert " changes" not in changes.locator(".effect").inner_text()
    assert changes.get_by_role("button", name="Take all changes back").count() == 0
    for head, said in ((0, "with both changes"), (1, "with all 3 changes")):
        visit.go(block=1, head=head)
        visit.open("attention").get_by_role("button", name="take out this head").click()
        visit.settle()
        changes = visit.open("changes")
        assert tab.inner_text() == f"Changes ({head + 2})"
        assert said in changes.locator(".effect").inner_text()
    changes.get_by_role("button", name="Take all changes back").click()
    assert tab.inner_text() == "Changes"
    assert visit.said == []
    visit.close()


def test_a_change_by_touch_is_run_and_taken_back(browser: Any, server: PageServer) -> None:
    """A neuron of the picture is scaled and taken out on its card; the text is made with it; its address says so."""
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.choose("learned")
    visit.write("a text of some words", tokens=8, temperature=0)
    page, before, card = visit.page, visit.text(), visit.page.locator(".number-card")
    visit.go(block=1, token=5)
    page.locator(".neurons:not(.dim) .neuron").first.click()
    visit.settle()
    neuron = card.locator("h3").inner_text()
    assert neuron.startswith("blocks.1.feedforward.hidden [")
    card.get_by_role("slider").fill("4")
    card.get_by_role("button", name="take out").click()
    list_stages(visit.page)
    assert page.locator("#tab-changes").inner_text() == "Changes (1)"
    visit.go(point="blocks.1.attention.output", dim=0)
    card.get_by_role("button", name="take out the output of attention in block 1").click()
    assert page.locator("#tab-changes").inner_text() == "Changes (2)"
    visit.write("a text of some words", tokens=8, temperature=0)
    after = visit.text()
    assert after != before
    assert "The text was made" not in page.locator(".write").inner_text()
    page.wait_for_timeout(600)
    again = Visit(browser, page.url)
    again.make_again()
    assert again.text() == after
    list_stages(again.page)
    assert again.page.locator("#tab-changes").inner_text() == "Changes (2)"
    again.close()
    changes = visit.open("changes")
    for _ in range(2):
        changes.get_by_role("button", name="take back").first.click()
    visit.write("a text of some words", tokens=8, temperature=0)
    assert visit.text() == before
    assert page.locator(f"{TEXT} .token").count() > 8
    visit.close()


def test_a_pattern_is_pinned(browser: Any, server: PageServer) -> None:
    """ "look only there": the head takes all from one token."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0)
    visit.go(block=3, head=1, token=4, key=2, point="blocks.3.attention.pattern")
    card = visit.page.locator(".number-card")
    card.get_by_role("button", name="look only there").click()
    visit.settle()
    arcs = visit.page.locator(".arcs [data-key]")
    assert [(one.get_attribute("data-key"), float(one.get_attribute("data-weight"))) for one in arcs.all()] == [
        ("2", 1.0)
    ]
    assert visit.page.locator(".before-arcs path").count() > 0
    assert card.get_by_role("button", name="look only there").get_attribute("aria-pressed") == "true"
    card.get_by_role("button", name="look only there").click()
    visit.settle()
    assert arcs.count() > 1
    assert visit.said == []
    visit.close()


def test_a_vector_of_two_prompts_steers(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("I think that", tokens=6, temperature=0)
    changes = visit.open("changes")
    changes.locator("summary").click()
    changes.get_by_role("button", name="Add the vector").click()
    plain, changed = compared(changes)
    assert plain != changed
    visit.settle()
    listed = changes.locator(".edits").inner_text()
    assert "towards “I love this.”, away from “I hate this.”" in listed
    assert "long; the residual stream there is" in listed
    changes.get_by_role("spinbutton", name="as a number").fill("2")
    changes.get_by_role("spinbutton", name="as a number").blur()
    assert changes.get_by_role("slider").input_value() == "2"
    assert visit.page.locator(".ribbon .before").count() > 0
    assert visit.said == []
    visit.close()


def test_a_change_moves_the_vector_of_a_sentence(browser: Any, server: PageServer) -> None:
    """An encoder has no next token: the panel says how far its vector moves."""
    visit = Visit(browser, server.url)
    visit.choose("minilm")
    visit.write("The dog bites the man.")
    visit.go(block=1, head=3)
    visit.open("attention").get_by_role("button", name="take out this head").click()
    visit.settle()
    changes = visit.open("changes")
    line = changes.locator(".effect").inner_text()
    with pellucid.load("minilm", threads=2) as llm, llm.trace("normalize") as trace:
        llm.embed(["The dog bites the man."])
        llm.embed(["The dog bites the man."], edits=[ablate("blocks.1.attention.heads[heads=3]")])
    plain, changed = (one["normalize"].ravel().astype(float) for one in trace.sequences)
    assert f"moves by {np.linalg.norm(plain - changed):.3f}," in line
    visit.close()
