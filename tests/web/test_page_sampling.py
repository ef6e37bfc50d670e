"""The chain from logits to a drawn token, computed in the browser."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.page_server import PageServer
from support.page_visit import SECONDS, Visit
from support.sampling import Words

from pellucid.sample.options import Options


def test_sliders_move_the_bars(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=2)
    section = visit.open("sampling")
    first = section.locator(".bars tbody tr").first
    first.wait_for(timeout=SECONDS)
    before = first.inner_text()
    section.get_by_label("temperature").fill("0")
    assert "100 %" in first.inner_text()
    assert first.inner_text() != before
    section.get_by_label("top-k").fill("3")
    section.get_by_label("temperature").fill("1")
    section.get_by_label("top-p").fill("1")
    assert "3 of 49,152 tokens may be drawn" in section.inner_text()
    visit.close()


def test_the_sliders_chain_is_the_one_of_python(browser: Any, server: PageServer) -> None:
    """Also for rows without a token and for equal logits."""
    visit, rng, size = Visit(browser, server.url), np.random.default_rng(5), 60
    for temperature, top_k, top_p in ((0.7, 0, 1.0), (1.3, 9, 0.9), (0.2, 40, 0.5), (1.0, 3, 1.0), (0.0, 40, 0.9)):
        logits = rng.normal(0, 3, 64).round(1).astype(np.float32)
        how = {"temperature": temperature, "topK": top_k, "topP": top_p}
        code = (
            "async ([logits, size, how]) => (await import('/web/panels/sampling.js'))"
            ".chain(Float32Array.from(logits), size, how)"
        )
        rows = visit.page.evaluate(code, [logits.tolist(), size, how])
        options = Options.of(temperature=temperature, top_k=top_k, top_p=top_p, min_p=0, seed=1)
        draw = options.chain().start(Words(size), []).sample(logits)
        tokens = [one["token"] for one in rows]
        assert tokens == np.argsort(-logits[:size], kind="stable").tolist()
        plain = draw.logits.probabilities()[tokens]
        assert np.allclose([one["plain"] for one in rows], plain, rtol=1e-5)
        left = dict(zip(draw.candidates.ids_at().tolist(), draw.candidates.probabilities()))
        kept = {one["token"]: one["last"] for one in rows if one["last"] > 0}
        assert kept == {draw.token: 1} if not temperature else kept.keys() == left.keys()
        if temperature:
            assert np.allclose([left[token] for token in kept], list(kept.values()), rtol=1e-5)
    visit.close()
