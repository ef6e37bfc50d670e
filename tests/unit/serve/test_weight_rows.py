"""POST /look/weights: the weights of a number give the recorded number."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.sources import source_model
from support.tiny import ENCODERS, SOURCES, TASKS, TINY, model_runner, opened

import pellucid
from pellucid import pipeline
from pellucid.errors import InvalidRequest
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.llm import LLM
from pellucid.model.slot_reader import SlotReader
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.serve.look import queries
from pellucid.serve.look.queries import QUERIES
from pellucid.testing import random_model
from pellucid.trace.trace import Trace
from pellucid.trace.traced_model import ModelWeights

MODELS = {**TINY, **ENCODERS, **TASKS}
IDS = [7, 30, 12, 55, 12, 9, 41]
FUNCTIONS = {
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}
"""The functions of output layers."""
REFUSED = "it is no product of weights, but computed from"
"""The end of a refusal of a point that other kernels compute."""


def asked(model: Any, **fields: Any) -> dict[str, Any]:
    return queries.weights(QUERIES["weights"].body.decode({"model": "m", **fields}), model)


def numbers(array: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"]).astype(np.float64)


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)


def computed(found: Mapping[str, Any], arrays: Mapping[str, np.ndarray], count: int, index: int = 0) -> np.ndarray:
    """The last ``count`` values of component ``index``, computed from its weights and the recorded input."""
    first, stop = found.get("columns", (0, 0))
    x = flat(arrays[found["input"]])[-count:, first:stop] if found["input"] else np.zeros((count, 0))
    if found["kind"] == "norm":
        centred = x - x.mean(1, keepdims=True) if found["norm"] == "layer" else x
        scale = found["weights"] / np.sqrt((centred**2).mean(1) + found["epsilon"])
        return centred[:, index - first] * scale + (found["bias"] or 0.0)
    values = x @ numbers(found["weights"]) + (found["bias"] or 0.0)
    for change in found["then"]:
        if change["kernel"] == "scale":
            values = values * change["factor"]
        elif change["kernel"] == "activation":
            values = np.array([FUNCTIONS[change["kind"]](value) for value in values])
        else:
            values = change["cap"] * np.tanh(values / change["cap"])
    return values


@pytest.mark.parametrize("name", MODELS)
def test_weights_give_the_recorded_values(name: str) -> None:
    """For every point of the tiny models of every family, at some components."""
    with opened(MODELS[name]) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), MAX_ACTIVATION_BITS)
        with model_runner(MODELS[name], plan) as runner:
            points = runner.plan.points
            trace = Trace(points, ["**"])
            ids = [token % model.spec.embedding.vocabulary for token in IDS]
            watching = trace.watching()
            (recorder,) = watching.begin(ids)
            watching.keep(recorder)
            recorder.tokens = lambda: ids
            runner.forward(
                [Chunk(BlockTable(), ids, len(ids) if model.spec.output_rows == "outputs" else 0, recorder=recorder)]
            )
            arrays = {point: trace.sequences[0][point] for point in points}
        fake = SimpleNamespace(points=points, plan=plan, checkpoint=checkpoint, model=model)
        kinds = set()
        for point in points.values():
            size = point.view.parts * point.view.count
            kinds |= {check(fake, arrays, point.name, index, ids) for index in {0, size // 3, max(size - 1, 0)}}
    assert {"linear", "embedding"} <= kinds


@pytest.mark.parametrize("name", SOURCES)
def test_weights_give_the_recorded_values_of_an_encoder_and_its_decoder(name: str, tmp_path: Path) -> None:
    source = [7, 30, 12, 55, 9]
    with pellucid.load(source_model(name, tmp_path), precise=True, threads=1) as llm:
        with llm.trace("**") as trace:
            llm.generate(source, max_new_tokens=1, temperature=0, ignore_eos=True)
        arrays = {point: trace.sequences[0][point] for point in llm.plan.encoder.points | llm.plan.points}
        kinds = dict[bool, set[str]]()
        for of_source, points in ((True, llm.plan.encoder.points), (False, llm.plan.points)):
            ids = llm.inputs.prompt(source) if of_source else list(llm.spec.start)
            for point in points.values():
                size = point.view.parts * point.view.count
                found = {check(llm, arrays, point.name, index, ids) for index in {0, max(size - 1, 0)}}
                kinds.setdefault(of_source, set()).update(found)
    assert all({"linear", "norm", "embedding"} <= found for found in kinds.values()), kinds


def check(model: Any, arrays: Mapping[str, np.ndarray], point: str, index: int, ids: list[int]) -> str:
    """Compare the computed and the recorded values of a component. Returns its kind; "" if it is refused."""
    values, refusal = arrays[point], ""
    try:
        found = asked(model, point=point, index=index)
    except InvalidRequest as error:
        refusal = str(error)
    if "row is missing" in refusal:
        for at, row in enumerate(range(len(ids)) if point.endswith("position") else ids):
            one = asked(model, point=point, index=index, row=row)
            before = flat(arrays[one["input"]])[at, index] if one["input"] else 0.0
            assert flat(values)[at, index] == pytest.approx(before + one["factor"] * one["weights"], abs=2e-6)
        return "embedding"
    if "expert is missing" in refusal:
        check_experts(model, arrays, point, index)
        return "linear"
    if refusal:
        assert REFUSED in refusal or "is computed from a part of" in refusal
        return ""
    if found["kind"] == "embedding":
        return "embedding"
    recorded = flat(values)[:, index]
    wanted = computed(found, arrays, len(recorded), index)
    scale = np.abs(values).max() + 1e-6
    assert np.abs(wanted - recorded).max() < 2e-5 * scale, point
    return str(found["kind"])


def check_experts(model: Any, arrays: Mapping[str, np.ndarray], point: str, index: int) -> None:
    stage = point[: point.index(".experts.")]
    choice = index // arrays[point].shape[2]
    for at, chosen in enumerate(arrays[f"{stage}.experts"]):
        found = asked(model, point=point, index=index, expert=int(chosen[choice]))
        part = {name: values[at : at + 1] for name, values in arrays.items() if name == found["input"]}
        recorded = arrays[point][at].reshape(-1)[index]
        assert computed(found, part, 1)[0] == pytest.approx(recorded, abs=2e-5 * float(np.abs(arrays[point]).max()))


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0", "F16"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("weights") / "llama.gguf"
    random_model("llama", path, form=request.param, width=128, feed_forward=256)
    with pellucid.load(path, precise=True) as loaded:
        yield loaded


@pytest.mark.parametrize("point", ["q", "k", "v", "output"])
def test_rows_are_those_of_the_dequantized_matrix(llm: LLM, point: str) -> None:
    """Also of queries and keys, whose rows GGUF permutes."""
    matrix = ModelWeights(llm.checkpoint, llm.model).values(f"blocks.1.attention.{point}.weight")
    with llm.trace("blocks.1.attention.*") as trace:
        llm.generate("the cat sat on the mat", max_new_tokens=1)
    arrays = {name: trace.sequences[0][name] for name in trace}
    for index in (0, 1, 17, len(matrix) - 1):
        found = asked(llm, point=f"blocks.1.attention.{point}", index=index)
        assert np.array_equal(numbers(found["weights"]), matrix[index])
        assert found["input"] == f"blocks.1.attention.{'heads' if point == 'output' else 'norm'}"
        assert found["columns"] == [0, matrix.shape[1]]
        assert found["bias"] is None
        recorded = flat(arrays[f"blocks.1.attention.{point}"])[:, index]
        np.testing.assert_allclose(computed(found, arrays, len(recorded)), recorded, atol=3e-5)


def test_what_has_no_weights_is_refused(llm: LLM) -> None:
    for fields, said in (
        ({"point": "blocks.0.attention.pattern", "index": 0}, f"{REFUSED} blocks.0.attention.scores"),
        ({"point": "blocks.0.residual", "index": 0}, f"{REFUSED} blocks.0.feedforward.residual"),
        ({"point": "blocks.0.feedforward.hidden", "index": 0}, "feedforward.gate and blocks.0.feedforward.up"),
        ({"point": "sample.entropy", "index": 0}, "no product of weights"),
        ({"point": "blocks.*.attention.q", "index": 0}, "must be one whole point"),
        ({"point": "blocks.0.attention.q[dims=1]", "index": 0}, "must be one whole point"),
        ({"point": "blocks.0.nothing", "index": 0}, "no point has this name"),
        ({"point": "blocks.0.attention.q", "index": 128}, "index=128"),
        ({"point": "blocks.0.attention.q", "index": 0, "expert": 1}, "expert=1"),
        ({"point": "blocks.0.attention.q", "index": 0, "row": 1}, "row=1"),
        ({"point": "embed", "index": 0}, "row is missing"),
        ({"point": "embed", "index": 0, "row": 10**6}, "row=1,000,000"),
    ):
        with pytest.raises(InvalidRequest, match=said.replace("*", r"\*").replace("[", r"\[")):
            asked(llm, **fields)


def test_a_norm_and_an_embedding_have_single_weights(llm: LLM) -> None:
    gains = ModelWeights(llm.checkpoint, llm.model).values("blocks.0.feedforward.norm.weight")
    found = asked(llm, point="blocks.0.feedforward.norm", index=5)
    assert found == {
        "kind": "norm",
        "norm": "rms",
        "epsilon": llm.spec.blocks[0].norm.eps,
        "input": "blocks.0.attention.residual",
        "columns": [0, 128],
        "weights": float(gains[5]),
        "bias": None,
    }
    table = ModelWeights(llm.checkpoint, llm.model).values("embed.weight")
    found = asked(llm, point="embed", index=9, row=65)
    assert found == {"kind": "embedding", "input": None, "weights": float(table[65, 9]), "factor": 1.0, "bias": None}


def test_the_output_of_a_task_that_the_file_does_not_state_has_weights(tmp_path: Path) -> None:
    """The default task of this file is "embed", which has no output layers with weights."""
    shutil.copytree(TASKS["bert-fill"], folder := tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with pellucid.load(folder, task="fill", threads=1) as llm:
        dense, norm = (asked(llm, point=f"output.{layer}", index=7) for layer in (0, 1))
        stored = {
            name: llm.checkpoint.data(f"cls.predictions.transform.{name}.weight").view("<f4")
            for name in ("dense", "LayerNorm")
        }
        width = llm.spec.embedding.width
        assert (dense["kind"], dense["input"]) == ("linear", "blocks.1.residual")
        assert np.array_equal(numbers(dense["weights"]), stored["dense"].reshape(width, width)[7])
        assert (norm["kind"], norm["weights"]) == ("norm", float(stored["LayerNorm"].reshape(-1)[7]))


def test_weights_that_are_converted_when_they_are_loaded_are_those_of_the_file() -> None:
    with pellucid.load(TASKS["bert-fill"], threads=1) as llm:
        assert llm.spec.blocks[1].attention.smoothed
        with opened(TASKS["bert-fill"]) as (checkpoint, model):
            for part in ("q", "output"):
                wanted = SlotReader(checkpoint, model.sources(f"blocks.1.attention.{part}.weight")).values()
                found = asked(llm, point=f"blocks.1.attention.{part}", index=5)
                assert np.array_equal(numbers(found["weights"]), wanted[5])
