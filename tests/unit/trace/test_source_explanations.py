"""Explanations of encoder-decoders: each contribution equals the result of a float64 run in NumPy, on random models."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Command
from support.reference import Array, Reference
from support.sources import LETTERS, source_model
from support.tiny import SOURCES

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.model.spec import Attention, Block, Norm
from pellucid.testing import random_model
from pellucid.trace import RecordedRun, ablate, relevance, token_contributions
from pellucid.trace.explanation import explain
from pellucid.trace.lenses.attribution import attribute

SOURCE = "".join(LETTERS[10:40])
STEP = 4
OPTIONS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


class DividedRun(Reference):
    """A float64 run that divides the last token's residual stream among the parts that wrote it.

    ``written`` maps a part to its vector (D,). The vectors sum to the stream at every stage: a norm divides each vector
    by the scale of the sum. A head is divided among the tokens it attends to: its parts are (stage, head, token).
    """

    written: dict[Any, Array]

    def divided(self, ids: Sequence[int], token: int) -> dict[Any, float]:
        """The contribution of each part to the logit of ``token`` after ``ids``, before a soft-cap."""
        self.written = {}
        self.rows(ids)
        head, slot = self.spec.head, "embed.weight" if self.spec.head.tied else "project.weight"
        if self.spec.final_norm:
            self.normalize(self.spec.final_norm, "norm")
        row = self.weight(slot)[token] * head.scale
        found = {part: float(row @ vector) for part, vector in self.written.items()}
        if head.bias:
            found["constant"] = found.get("constant", 0.0) + head.scale * float(self.weight("project.bias")[token])
        return found

    def normalize(self, kind: Norm, slot: str, written: dict[Any, Array] | None = None) -> None:
        """Apply a norm with the scale of the sum to each vector. Its bias is a constant."""
        written = self.written if written is None else written
        total = sum(written.values())
        mean = (lambda x: x.mean()) if kind.kind == "layer" else (lambda x: 0.0)
        scale = 1 / np.sqrt(((total - mean(total)) ** 2).mean() + kind.eps)
        weight = self.weight(f"{slot}.weight") if kind.weight else 1.0
        for part, vector in written.items():
            written[part] = (vector - mean(vector)) * scale * weight
        if kind.kind == "layer" and kind.bias:
            written["constant"] = written.get("constant", 0.0) + self.weight(f"{slot}.bias")

    def sublayer(self, x: Array, kind: Block, at: str, inside: Callable[[Array], Array]) -> Array:
        if not self.written:
            self.written["embedding"] = x[-1]
        seen = self.norm(x, kind.norm, f"{at}.norm") if kind.placement in ("pre", "sandwich") else x
        part = getattr(kind, at.split(".")[2])
        written = self.by_token(seen, part, at) if isinstance(part, Attention) else {at: inside(seen)[-1]}
        if kind.placement in ("sandwich", "output"):
            self.normalize(kind.norm, f"{at}.post_norm", written)
        for name, vector in written.items():
            self.written[name] = self.written.get(name, 0.0) + kind.residual_scale * vector
        if kind.placement == "post":
            self.normalize(kind.norm, f"{at}.norm")
        after = super().sublayer(x, kind, at, inside)
        np.testing.assert_allclose(sum(self.written.values()), after[-1], rtol=0, atol=1e-9)
        return after

    def by_token(self, x: Array, kind: Attention, at: str) -> dict[Any, Array]:
        """The vectors of an attention's heads for each token they attend to, and of its bias."""
        if at.endswith(".cross"):
            project = lambda y, n: self.linear(y, f"{at}.{n}", kind.bias).reshape(len(y), -1, kind.head_dim)  # noqa: E731
            q, k, v = project(x[-1:], "q"), project(self.source, "k"), project(self.source, "v")
            if kind.qk_norm:
                q, k = self.norm(q, kind.qk_norm, f"{at}.q_norm"), self.norm(k, kind.qk_norm, f"{at}.k_norm")
            k, v = (np.repeat(part, kind.heads // kind.kv_heads, 1) for part in (k, v))
            scores = np.einsum("hk,shk->hs", q[0], k) * kind.scale
            scores = kind.softcap * np.tanh(scores / kind.softcap) if kind.softcap else scores
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        else:
            self.attention(x, kind, at)
            weights, v = self.patterns[at][:, -1], self.cached[at][1]
        matrix = kind.output_scale * self.weight(f"{at}.output.weight").reshape(-1, kind.heads, kind.value_dim)
        each = np.einsum("hs,shv,dhv->hsd", weights, v, matrix)
        found: dict[Any, Array] = {(at, h, s): each[h, s] for h in range(kind.heads) for s in range(len(v))}
        if kind.output_bias:
            found["constant"] = kind.output_scale * self.weight(f"{at}.output.bias")
        return found


@pytest.fixture(scope="module", params=list(SOURCES))
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = source_model(request.param, tmp_path_factory.mktemp("sources"))
    with pellucid.load(folder, threads=2, precise=True, kv_cache="f32") as loaded:
        yield loaded


def test_contributions_are_the_results_of_a_float64_run(llm: LLM) -> None:
    found = explain(llm, SOURCE, step=STEP, **OPTIONS)
    attributed, by_token = found.attribution, found.token_contributions
    assert attributed is not None
    assert by_token is not None
    ids = [*llm.spec.start, *llm.generate(SOURCE, max_new_tokens=STEP, **OPTIONS).ids]
    assert [piece.id for piece in found.pieces] == ids[:STEP]
    assert [piece.id for piece in found.source_pieces] == llm.tokenizer.encode(SOURCE)
    assert attributed.token_id == ids[STEP]
    run = DividedRun(llm.checkpoint, llm.model, source=llm.tokenizer.encode(SOURCE))
    wanted = run.divided(ids[:STEP], ids[STEP])

    near = {"rtol": 0, "atol": 2e-5 * max(1.0, abs(attributed.logit))}
    tokens, source, by_head = (np.zeros(STEP), np.zeros(len(found.source_pieces)), defaultdict[str, float](float))
    for part, value in wanted.items():
        if isinstance(part, tuple):
            stage, head, at = part
            (source if stage.endswith("cross") else tokens)[at] += value
            by_head[f"{stage}.heads.{head}"] += value
    np.testing.assert_allclose(by_token.tokens, tokens, **near)
    np.testing.assert_allclose(by_token.source, source, **near)
    np.testing.assert_allclose(by_token.rest, sum(v for k, v in wanted.items() if not isinstance(k, tuple)), **near)
    assert np.abs(source).min() > 0
    assert np.abs(tokens).min() > 0

    assert attributed.total == pytest.approx(sum(wanted.values()), abs=near["atol"])
    own = {part.name: part.value for part in attributed.contributions}
    for name, value in by_head.items():
        np.testing.assert_allclose(own[name], value, err_msg=name, **near)
    for layer in range(len(llm.spec.blocks)):
        name = f"blocks.{layer}.feedforward"
        np.testing.assert_allclose(own[name], wanted[name], err_msg=name, **near)
    others = [part for part in attributed.contributions if part.head is None and part.kind != "feedforward"]
    embedded = sum(part.value for part in others if part.kind == "embedding")
    constants = sum(part.value for part in others if part.kind not in ("embedding", "rounding"))
    np.testing.assert_allclose(embedded, wanted["embedding"], **near)
    np.testing.assert_allclose(constants, wanted.get("constant", 0.0), **near)
    assert {head.cross for head in found.heads} == {True, False}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_report_shows_the_words_of_the_source(name: str, tmp_path: Path) -> None:
    with pellucid.load(source_model(name, tmp_path), threads=2) as llm:
        found = explain(llm, SOURCE, step=2, max_new_tokens=3, heads=40, **OPTIONS)
        made = llm.generate(SOURCE, max_new_tokens=3, **OPTIONS).ids
        ids = llm.tokenizer.encode(SOURCE)
        page = found.html()
        notebook = found._repr_html_()
        document = json.loads(json.dumps(found.as_dict()))
        with llm.trace("**") as trace:
            llm.generate(SOURCE, max_new_tokens=3, **OPTIONS)
        sequence = trace.sequences[0]
        last = attribute(llm, sequence, made[2], position=2).as_dict()
    pieces = [llm.tokenizer.piece(token) for token in ids]
    assert [one["text"] for one in document["source_pieces"]] == pieces
    assert document["token_contributions"]["source_pieces"] == pieces
    assert sum(document["token_contributions"]["source"]) != 0
    listed = notebook.partition("Tokens and embeddings")[0]
    assert all(piece in listed for piece in LETTERS[10:40])
    looked = {text for head in document["heads"] if head["cross"] for text, _ in head["looked_at"]}
    assert looked <= set(pieces)
    for head, pattern in zip(found.heads, found.patterns):
        assert pattern.shape == (2, len(ids) if head.cross else 2)
        np.testing.assert_allclose(pattern.sum(-1), 1, rtol=0, atol=1e-5)
    packed = re.search(r'type="application/gzip"[^>]*>([^<]+)<', page)
    assert packed is not None
    (tmp_path / "it.run").write_bytes(gzip.decompress(base64.b64decode(packed[1])))
    run = RecordedRun.open(tmp_path / "it.run")
    assert (run.source, run.source_pieces) == (ids, pieces)
    assert (run.prompt, run.ids) == (list(llm.spec.start), made)
    for point in ("encoder.blocks.0.attention.pattern", "blocks.0.cross.pattern"):
        assert np.array_equal(run[point], sequence[point])
    answers = {json.dumps([path, body], sort_keys=True): value for path, body, value in run.answers}
    fields = {"prompt": ids, "answer": made[:2], "token": made[2]}
    assert answers[json.dumps(["/look/attribution", fields], sort_keys=True)] == last
    fields = {"prompt": ids, "answer": made, "top": 3}
    lens = answers[json.dumps(["/look/lens", fields], sort_keys=True)]
    assert lens["pieces"] == sequence.pieces


def test_the_command_explains_a_step(command: Command, tmp_path: Path) -> None:
    folder = str(random_model("marian", tmp_path / "marian", kind="safetensors"))
    shown = command("explain", folder, "a cat", "--step", "3", "--temperature", "0", "--ignore-eos")
    assert shown.code == 0
    assert shown.out.startswith("tokens of the source")
    assert "tokens that made it likely" in shown.out
    assert re.search(r"^[+-]\d\.\d{3} +source +\d+ +\S", shown.out, re.M)
    assert re.search(r"^\d\.\d cross +[+-]", shown.out, re.M)
    for wrong, said in (("0", "step=0: must be"), ("x", "step='x'")):
        refused = command("explain", folder, "a cat", "--step", wrong)
        assert (refused.code, len(refused.err.splitlines())) == (2, 1)
        assert said in refused.err
    few = command("explain", folder, "a cat", "--step", "5", "--max-new-tokens", "2", "--ignore-eos")
    assert (few.code, len(few.err.splitlines())) == (2, 1)
    assert "step=5: the model generated only 2 tokens" in few.err


def test_a_source_that_is_not_read_contributes_nothing(tmp_path: Path) -> None:
    with pellucid.load(source_model("t5", tmp_path), precise=True) as llm:
        edits = [ablate("blocks.*.cross.pattern")]
        found = explain(llm, SOURCE, edits=edits, step=2, **OPTIONS).token_contributions
        assert found is not None
        assert not found.source.any()
        assert found.tokens.all()
        with pytest.raises(InvalidRequest, match="trace an answer"):
            token_contributions(llm, SOURCE)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "qwen3_next", "gpt_oss", "openai-gpt"])
def test_contributions_of_tokens_are_those_of_the_heads(family: str, tmp_path: Path) -> None:
    """Models without a source have them too: with gates, sinks, and norms of the stream."""
    path = random_model(family, tmp_path / family, kind="safetensors", context=256)
    with pellucid.load(path, threads=2, precise=True, kv_cache="f32") as llm:
        found = explain(llm, "the cat sat", step=2, heads=0, **OPTIONS)
        assert found.attribution is not None, found.notes
        assert found.token_contributions is not None, found.notes
        heads = sum(part.value for part in found.attribution.ranked("head"))
        assert found.token_contributions.tokens.sum() == pytest.approx(heads, abs=2e-5 * max(1, abs(heads)))
        assert len(found.token_contributions.tokens) == len(found.pieces)


def test_relevance_is_refused_where_the_stream_is_normalised(tmp_path: Path) -> None:
    path = random_model("openai-gpt", tmp_path / "model", kind="safetensors", context=256)
    with pellucid.load(path, threads=2) as llm, pytest.raises(InvalidRequest, match="use attribute"):
        relevance(llm, "the cat sat")


def test_latent_attention_has_no_contributions_of_tokens(tmp_path: Path) -> None:
    path = random_model("deepseek_v2", tmp_path / "model", kind="safetensors", context=256)
    with pellucid.load(path, threads=2) as llm:
        found = explain(llm, "the cat sat", **OPTIONS)
        assert found.attribution is not None
        assert found.token_contributions is None
        assert found.notes[0].startswith("no contributions of tokens: blocks.0.attention has no values")
        with pytest.raises(InvalidRequest, match="latent vectors"):
            token_contributions(llm, "the cat sat")
