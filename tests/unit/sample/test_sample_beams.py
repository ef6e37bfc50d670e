"""Beam search against transformers (``tests/oracles/beams_oracle.py``), and the tree that it records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.model_files import gguf
from support.reference import Reference
from support.sampling import Words
from support.tiny import TINY, model_runner, opened

import pellucid
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.tasks.beam_search import BeamSearchTask
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.measure.suite import prefill
from pellucid.model.weight_map import Model
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.beams import BeamOptions, BeamSearch, gumbel
from pellucid.sample.options import Options
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.open import open_checkpoint
from pellucid.weights.pack import decode
from pellucid.weights.store import resolve

GOLDEN = json.loads((Path(__file__).parents[2] / "goldens" / "sample" / "beams.json").read_text())
CASES = GOLDEN["cases"]
SMALL = [
    pytest.param(case, id=f"{case['model']}-{case['kind']}-{at}")
    for at, case in enumerate(CASES)
    if case["model"] in TINY
]
OWN = (
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "do_sample",
)


def fixed(seed: int) -> Callable[[int, int], np.ndarray]:
    """Return the noise of the golden for a seed."""

    def noise(step: int, count: int) -> np.ndarray:
        u = np.random.Generator(np.random.Philox(key=seed, counter=step)).random(count)
        return np.asarray(-np.log(-np.log(u)))

    return noise


class ByReference:
    """A model runner for beam search with the reference's logits: float64, without a cache."""

    def __init__(self, checkpoint: Checkpoint, model: Model) -> None:
        self._reference = Reference(checkpoint, model)
        self.width = model.spec.embedding.vocabulary

    def forward(self, chunks: list[Chunk]) -> np.ndarray:
        (chunk,) = chunks  # the whole text, because a fork of a table starts empty
        chunk.table.length = len(chunk.tokens)
        return self.logits(list(chunk.tokens))[np.newaxis]

    def logits(self, tokens: list[int]) -> np.ndarray:
        return np.float32(self._reference.logits(tokens)[-1])

    @property
    def cache(self) -> Any:
        """Its cache manager, which holds nothing."""
        return self

    def fork(self, table: BlockTable) -> BlockTable:
        return BlockTable()

    def keep_prefix(self, table: BlockTable, tokens: list[int]) -> None:
        pass

    def release(self, *tables: BlockTable, tokens: list[int] = ()) -> None:
        pass


def searched(net: Any, case: dict[str, Any]) -> BeamSearch:
    options, words = dict(case["options"]), Words(net.width)
    limit = options.pop("max_new_tokens")
    beams = BeamOptions(**{name: options.pop(name) for name in OWN if name in options})
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    chain = Options.of(**{**usual, **options}, seed=0).chain()
    if not beams.do_sample:
        chain = chain.without_drawing()
    ends = frozenset(case["eos_ids"])
    sampler = chain.start(words, case["prompt"], ends)
    noise = fixed(case["noise"]["seed"]) if "noise" in case else None
    search = BeamSearch(beams, sampler, ends, limit, noise, case.get("pad_id"))
    task = BeamSearchTask(net.cache, case["prompt"], search)
    task.begin(0.0)
    while not task.done:
        for sequence in task.sequences():
            if isinstance(net, ByReference):
                sequence.table = BlockTable()
            rows = net.forward([sequence.chunk(len(sequence.tokens), 1)])
            list(task.process(sequence, rows, 0.0))
    task.close()
    return search


def check(found: BeamSearch, case: dict[str, Any], tolerance: float) -> None:
    results = found.results()
    assert [one.ids for one in results] == [one["ids"] for one in case["sequences"]]
    wanted = [one["score"] for one in case["sequences"]]
    np.testing.assert_allclose([one.score for one in results], wanted, rtol=2e-6, atol=tolerance)


@pytest.mark.parametrize("case", SMALL)
def test_the_same_logits_give_the_texts_and_scores_of_transformers(case: dict[str, Any]) -> None:
    with opened(TINY[case["model"]]) as (checkpoint, model):
        check(searched(ByReference(checkpoint, model), case), case, 2e-5)


class Afresh(ByReference):
    """A model runner that runs every beam's whole text again in each step."""

    def __init__(self, net: ModelRunner) -> None:
        self._net, self.width = net, net.width

    def logits(self, tokens: list[int]) -> np.ndarray:
        fresh = BlockTable()
        logits = prefill(self._net, fresh, tokens)
        self._net.cache.truncate(fresh, 0)
        return logits


@pytest.mark.parametrize("case", SMALL[::2])
def test_forks_of_the_cache_have_the_bits_of_whole_texts(case: dict[str, Any]) -> None:
    with model_runner(TINY[case["model"]]) as net:
        forked, afresh = searched(net, case), searched(Afresh(net), case)
        assert forked.nodes == afresh.nodes
        net.cache.clear_prefixes()
        assert net.cache.kv.free_pages == net.cache.kv.pages


@pytest.mark.parametrize("case", SMALL[::9])
def test_the_tree_says_what_became_of_each_candidate(case: dict[str, Any]) -> None:
    with model_runner(TINY[case["model"]]) as net:
        found = searched(net, case)
    nodes, size = found.nodes, case["options"]["num_beams"] // case["options"].get("num_beam_groups", 1)
    assert [node.id for node in nodes] == list(range(len(nodes)))
    for node in nodes[1:]:
        parent = nodes[node.parent]
        assert node.parent < node.id
        assert parent.step == node.step - 1
        assert parent.state in ("extended", "running", "pruned")
        assert node.state in ("finished", "extended", "pruned")
        assert bool(node.why) == (node.state == "pruned")
        assert node.ended is not None
        assert node.ended >= node.step
    for step in range(max(node.step for node in nodes) + 1):
        for group in {node.group for node in nodes}:
            here = [node for node in nodes if (node.step, node.group) == (step, group)]
            assert sum(node.state == "extended" for node in here) <= size
    ended = [node for node in nodes if node.state == "finished"]
    best = sorted((node.final_score for node in ended), reverse=True)
    wanted = found.results()
    assert [one.score for one in wanted] == best[: len(wanted)]
    for one in wanted:
        node = nodes[one.node]
        assert one.score == pytest.approx(node.score / len(one.ids) ** case["options"].get("length_penalty", 1.0))
        assert one.finish_reason == ("stop" if one.ids[-1] in case["eos_ids"] else "length")


def test_gumbel_noise_draws_without_replacement_as_one_after_the_other() -> None:
    """Compares pairs from 20,000 draws with p(a) p(b) / (1 - p(a)) at a significance of 0.1 %."""
    p = np.array([0.5, 0.25, 0.15, 0.1])
    counts = np.zeros((4, 4))
    for step in range(20_000):
        first, second = np.argsort(-(np.log(p) + gumbel(11)(step, 4)))[:2]
        counts[first, second] += 1
    wanted = 20_000 * p[:, None] * p / (1 - p[:, None])
    np.fill_diagonal(wanted, 0)
    assert np.diag(counts).sum() == 0
    off = ~np.eye(4, dtype=bool)
    assert ((counts[off] - wanted[off]) ** 2 / wanted[off]).sum() < 31.3  # 11 degrees of freedom


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0: must be a whole number from 1 to 64"),
        ({"num_beams": 65}, "num_beams=65"),
        ({"num_beams": 10**5000}, "num_beams="),
        ({"num_beams": True}, "num_beams=True"),
        ({"num_return_sequences": 5}, "num_return_sequences=5: must be a whole number from 1 to 4"),
        ({"length_penalty": math.nan}, "length_penalty=nan: must be a number from -10 to 10"),
        ({"length_penalty": "1"}, "length_penalty='1'"),
        ({"early_stopping": "always"}, 'must be True, False or "never"'),
        ({"early_stopping": None}, "early_stopping=None"),
        ({"do_sample": 1}, "do_sample=1: must be True or False"),
        ({"num_beam_groups": 3, "diversity_penalty": 0.5}, "must divide num_beams, which is 4"),
        ({"num_beam_groups": 2}, "groups need a penalty above 0"),
        ({"diversity_penalty": 0.5}, "groups need a penalty above 0"),
        ({"num_beam_groups": 2, "diversity_penalty": 0.5, "do_sample": True}, "groups of beams are not sampled"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        BeamOptions(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """SmolLM2 with its file's weights in float32 and precise computation."""
    checkpoint = open_checkpoint(resolve("smollm2"))
    tensors = {
        name: (tensor.shape, 0, decode(checkpoint, name).astype(np.float32).tobytes())
        for name, tensor in checkpoint.tensors.items()
    }
    path = tmp_path_factory.mktemp("float32") / "smollm2.gguf"
    path.write_bytes(gguf(checkpoint.metadata, tensors))
    checkpoint.close()
    del tensors
    llm = pellucid.load(path, precise=True)
    yield llm
    llm.close()
    path.unlink()


@pytest.mark.model
@pytest.mark.parametrize("case", [case for case in CASES if case["model"] == "smollm2"])
def test_smollm2_has_the_texts_and_scores_of_its_float_weights(smollm2: LLM, case: dict[str, Any]) -> None:
    found = searched(smollm2.runner, case)
    scale = max(len(one["ids"]) ** -min(case["options"].get("length_penalty", 1.0), 0.0) for one in case["sequences"])
    check(found, case, 1e-4 * scale)  # a negative length penalty multiplies scores and their errors
    options = dict(case["options"])
    if not set(options) - {*OWN, "max_new_tokens"} and case.get("pad_id") in (None, min(case["eos_ids"])):
        made = smollm2.beam_search(case["prompt"], **options)
        assert [one.ids for one in made.texts] == [one["ids"] for one in case["sequences"]]
        assert set(case["eos_ids"]) == smollm2.tokenizer.eos_ids
