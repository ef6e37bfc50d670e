"""DeBERTa: buckets, the setup, the scores of positions in traces, and files that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reference import Reference
from support.tiny import ENCODERS, model_runner, opened
from test_encoder_parity import rows_only

from pellucid import pipeline
from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.model.positions import RelativePositions
from pellucid.plan.bind import layouts
from pellucid.plan.plan import At, BucketTable
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.trace import Trace

BODIES = [name for name in ENCODERS if name.startswith("deberta")]
V2 = "deberta-v2"


def golden(name: str) -> tuple[list[int], list[int] | None, np.ndarray]:
    with np.load(ENCODERS[name] / "expected.npz") as file:
        types = file["type_ids"].tolist() if "type_ids" in file else None
        return file["input_ids"].tolist(), types, file["outputs"]


@pytest.mark.parametrize("name", [name for name in BODIES if golden(name)[2].shape[1] in (64, 72)])
def test_spec_means_what_transformers_computes(name: str) -> None:
    ids, types, wanted = golden(name)
    with opened(ENCODERS[name]) as (checkpoint, model):
        got = Reference(checkpoint, model).rows(ids, types)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", BODIES)
def test_traced_patterns_have_the_scores_of_positions(name: str) -> None:
    """Recorded patterns and scores equal the float64 reference, and recording changes no bit of the result."""
    ids, types, _ = golden(name)
    with opened(ENCODERS[name]) as (checkpoint, model):
        reference = Reference(checkpoint, model)
        reference.rows(ids, types)
        spec = rows_only(model.spec)
        plan = pipeline.build_plan(spec, layouts(checkpoint, model), 24)
    with model_runner(ENCODERS[name], plan, spec=spec, threads=2) as runner:
        plain = runner.forward([Chunk(BlockTable(), ids, len(ids), types=types)])
        trace = Trace(runner.plan.points, ["**.pattern", "**.scores"])
        watching = trace.watching()
        (recorder,) = watching.begin(ids)
        watching.keep(recorder)
        recorder.tokens = lambda: ids
        traced = runner.forward([Chunk(BlockTable(), ids, len(ids), recorder=recorder, types=types)])
    np.testing.assert_array_equal(traced, plain)
    for at, pattern in reference.patterns.items():
        np.testing.assert_allclose(trace[f"{at}.pattern"][0], pattern, atol=1e-5)
        scores = trace[f"{at}.scores"][0].astype(np.float64)
        again = np.exp(scores - scores.max(-1, keepdims=True))
        np.testing.assert_allclose(again / again.sum(-1, keepdims=True), pattern, atol=1e-5)


@pytest.mark.parametrize("name", ["deberta", "deberta-odd", V2, "deberta-v2-odd", "deberta-v2-conv"])
def test_a_text_has_the_same_bits_in_any_batch_and_on_any_threads(name: str) -> None:
    ids, types, _ = golden(name)
    texts = [(ids, types), (ids[:7], types and types[:7]), (ids[3:4], types and types[3:4])]
    found = []
    for threads in (1, 3):
        with opened(ENCODERS[name]) as (checkpoint, model):
            spec = rows_only(model.spec)
            plan = pipeline.build_plan(spec, layouts(checkpoint, model))
        with model_runner(ENCODERS[name], plan, spec=spec, threads=threads) as runner:
            chunks = [Chunk(BlockTable(), tokens, len(tokens), types=own) for tokens, own in texts]
            found.append(runner.forward(chunks))
            alone = [runner.forward([Chunk(BlockTable(), tokens, len(tokens), types=own)]) for tokens, own in texts]
            found.append(np.concatenate(alone))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_buckets_of_v3() -> None:
    """256 buckets up to a distance of 512, by the published formula: 127 exact distances, then a logarithmic scale."""
    kind = RelativePositions(span=256, longest=512)
    assert [kind.bucket(d) - 256 for d in (0, 1, -1, 127, 128, -128)] == [0, 1, -1, 127, 128, -128]
    sizes = np.arange(129, 512)
    scale = np.ceil(np.log(sizes / 128) / np.log(511 / 128) * 127) + 128
    assert [kind.bucket(int(d)) for d in sizes] == np.clip(scale + 256, 0, 511).astype(int).tolist()
    assert [kind.bucket(-int(d)) for d in sizes] == (256 - scale).astype(int).tolist()
    assert kind.bucket(511) == kind.bucket(100_000) == 511
    assert kind.bucket(-511) == 1
    assert kind.bucket(-100_000) == 0


def test_distances_without_buckets_end_at_the_span() -> None:
    kind = RelativePositions(span=4)
    assert [kind.bucket(d) for d in range(-6, 7)] == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]


def test_the_table_of_buckets_is_in_the_order_of_keys() -> None:
    table = BucketTable(RelativePositions(span=4), context=3)
    assert table.values()[:5].tolist() == [6, 5, 4, 3, 2]
    assert table.values()[table.origin] == 4


def test_the_setup_runs_once_and_the_step_reads_its_tables() -> None:
    with opened(ENCODERS[V2]) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
    assert plan.setup
    assert plan.setup.rows == 32
    stages = [op.stage for op in plan.setup.plan.operations]
    assert stages[:2] == ["relative", "relative.norm"]
    assert "blocks.1.attention.position_q_table" in stages
    attend = next(op for op in plan.operations if op.stage == "blocks.1.attention.attend")
    assert attend.kernel.name == "disentangled_attention"
    assert attend.fields["position_keys"] == At("blocks.1.attention.position_k.table")
    assert not any("relative" in op.stage or "position" in op.stage for op in plan.operations)


def changed(tmp_path: Path, name: str, **values: Any) -> Path:
    folder = tmp_path / name
    shutil.copytree(ENCODERS[name], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize(
    ("name", "values", "error", "match"),
    [
        (V2, {"pos_att_type": ["c2p", "p2p"]}, UnsupportedModel, "pos_att_type has 'p2p', which is not supported"),
        (V2, {"pos_att_type": 3}, FileFormatError, "pos_att_type: is 3; it must be a list of c2p and p2c"),
        (V2, {"position_buckets": 2}, FileFormatError, "position_buckets: is 2; it must be at least 4"),
        (V2, {"conv_kernel_size": 4}, FileFormatError, "conv_kernel_size: is 4; it must be odd"),
        (V2, {"conv_kernel_size": 3, "conv_groups": 2}, UnsupportedModel, "conv_groups = 2 is not supported"),
        (V2, {"attention_head_size": 8}, FileFormatError, "attention_head_size: is 8; it must be 16"),
        ("deberta", {"talking_head": True}, UnsupportedModel, "talking_head = True is not supported"),
        ("deberta-v2-classify", {"pooler_hidden_size": 32}, FileFormatError, "is 32; it must be 64"),
    ],
)
def test_refused_options(name: str, values: dict[str, Any], error: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match), opened(changed(tmp_path, name, **values)):
        pass


def test_too_many_buckets_for_the_distances(tmp_path: Path) -> None:
    folder = changed(tmp_path, V2, max_relative_positions=17)
    with opened(folder) as (checkpoint, model), pytest.raises(UnsupportedModel, match="a distance skips a bucket"):
        pipeline.build_plan(model.spec, layouts(checkpoint, model))
