"""Dictionaries in the files of SAELens, circuit-tracer, Gemma Scope and sparsify give the packages' own results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.model_files import safetensors

from pellucid.errors import FileFormatError, InvalidRequest, PellucidError
from pellucid.plan.points import Point, View
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.dictionaries.sparse_coder import FeatureEncoder

GOLDENS = Path(__file__).parents[2] / "goldens" / "trace" / "dictionaries"
D, F, L = 12, 40, 3
CASES = sorted(str(file.parent.relative_to(GOLDENS)) for file in GOLDENS.rglob("expected.npz"))
GEMMA_2 = {"reads": "blocks.1.hook_resid_post"}
VALUES = (
    "attention.norm",
    "attention.residual",
    "feedforward.norm",
    "feedforward.output",
    "feedforward.post_norm",
    "residual",
)
SINGLE, SEVERAL = "saelens-standard", "circuit-tracer-clt"


def model(width: int = D, layers: int = L, without: str = "") -> Any:
    """A model that has only points."""
    names = ["embed", *(f"blocks.{layer}.{name}" for layer in range(layers) for name in VALUES)]
    return SimpleNamespace(
        points={
            name: Point(name, "", View(1, width, width, width), operation)
            for operation, name in enumerate(names)
            if name != without
        }
    )


def opened(case: str, of: Any = None) -> Dictionary:
    return Dictionary.open(GOLDENS / case, of or model(), **(GEMMA_2 if case == "gemma-scope" else {}))


@pytest.mark.parametrize("case", CASES)
def test_activations_and_reconstructions_are_those_of_the_package(case: str) -> None:
    dictionary = opened(case)
    with np.load(GOLDENS / case / "expected.npz") as expected:
        x, features, output = (expected[name] for name in ("x", "features", "output"))
    if x.ndim == 2:
        x, features, output = x[None], features[None], output[None]
    assert len(dictionary.coders) == len(x)
    for number, (layer, coder) in enumerate(dictionary.coders.items()):
        got = coder.encode(x[number])
        np.testing.assert_allclose(got, features[number], atol=1e-5, rtol=1e-5)
        assert ((got != 0) == (features[number] != 0)).all()
        assert (features[number] != 0).any(), layer
        active, count = coder.active(x[number]), len(x[number])
        sums = coder.summed(active, 0, count)
        for other, at in dictionary.others(coder):
            sums = sums + other.summed(other.active(x[list(dictionary.coders).index(_layer(other))]), at, count)
        made = coder.reconstruction(sums, x[number])
        np.testing.assert_allclose(made, output[number], atol=3e-5, rtol=1e-5)


def _layer(coder: Any) -> int:
    return int(coder.reads.point.name.split(".")[1])


def test_every_package_has_cases() -> None:
    assert {case.partition("-")[0].partition("/")[0] for case in CASES} == {
        "saelens", "circuit", "gemma", "sparsify"
    }  # fmt: skip
    assert len(CASES) == 22


@pytest.mark.parametrize(
    ("case", "kind", "reads", "writes"),
    [
        ("saelens-topk", "SAE", "blocks.1.residual", ["blocks.1.residual"]),
        ("saelens-skip-transcoder", "transcoder", "blocks.1.feedforward.norm", ["blocks.1.feedforward.post_norm"]),
        ("circuit-tracer-skip", "transcoder", "blocks.0.feedforward.norm", ["blocks.0.feedforward.post_norm"]),
        (
            "circuit-tracer-clt",
            "cross-layer transcoder",
            "blocks.0.attention.residual",
            [f"blocks.{layer}.feedforward.post_norm" for layer in range(3)],
        ),
        ("gemma-scope-2/crosscoder/layer_0_1_2_width_40_l0_small", "crosscoder", "blocks.0.residual",
         [f"blocks.{layer}.residual" for layer in range(3)]),
        ("sparsify/layers.1.mlp", "transcoder", "blocks.1.feedforward.norm", ["blocks.1.feedforward.output"]),
    ],
)  # fmt: skip
def test_hooks_are_points(case: str, kind: str, reads: str, writes: list[str]) -> None:
    dictionary = opened(case)
    coder = next(iter(dictionary.coders.values()))
    assert dictionary.kind == kind
    assert coder.reads.name == reads
    assert [own.name for own in coder.writes] == writes


@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_other_rows_or_features(case: str) -> None:
    for coder in opened(case).coders.values():
        x = np.random.default_rng(3).standard_normal((150, D)).astype(np.float32)
        whole, active = coder.encode(x), coder.active(x)
        made = coder.decode(active, x)
        some = np.array([7, 0, 33])
        assert FeatureEncoder(coder, some)(x).tobytes() == np.ascontiguousarray(whole[:, some]).tobytes()
        for size in (1, 7, 64):
            parts = [x[at : at + size] for at in range(0, len(x), size)]
            assert np.concatenate([coder.encode(part) for part in parts]).tobytes() == whole.tobytes()
            decoded = [coder.decode(coder.active(part), part) for part in parts]
            assert np.concatenate(decoded).tobytes() == made.tobytes()


def copy(
    case: str, to: Path, config: dict[str, Any] | None = None, weights: str = "sae_weights.safetensors", **arrays: Any
) -> Path:
    """A copy of a case with changed fields of its configuration (None: without the field), or changed arrays."""
    folder = to / Path(case).name
    shutil.copytree(GOLDENS / case, folder)
    if config is not None:
        file = next(one for one in (folder / "cfg.json", folder / "config.json") if one.exists())
        merged = {**json.loads(file.read_text()), **config}
        file.write_text(json.dumps({k: v for k, v in merged.items() if v is not None}))
    if arrays:
        file = folder / weights
        raw = file.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        tensors = {}
        for name, own in json.loads(raw[8 : 8 + size]).items():
            if name != "__metadata__":
                start, stop = own["data_offsets"]
                tensors[name] = np.frombuffer(raw[8 + size + start : 8 + size + stop], "<f4").reshape(own["shape"])
        tensors |= arrays
        kept = {name: one for name, one in tensors.items() if one is not None}
        file.write_bytes(safetensors({name: ("F32", one.shape, one.tobytes()) for name, one in kept.items()}))
    return folder


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (model(width=16), "has vectors of 12 values, and blocks.1.residual of this model has 16: it is for another"),
        (model(layers=1), "hook 'blocks.1.hook_resid_post': the model has no such values; it has 1 blocks"),
        (model(without="blocks.1.residual"), "the model has no such values"),
    ],
)
def test_another_models_dictionary_is_refused(of: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as error:
        opened(SINGLE, of)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "temporal"}, "architecture: 'temporal' is not read; known are standard"),
        ({"architecture": 3}, "architecture: 3 is not read"),
        ({"architecture": "topk", "k": 1 << 40}, r"k: 1099511627776: must be a whole number from 1 to the 40 features"),
        ({"architecture": "topk", "k": "5"}, "k: '5': must be a whole number"),
        ({"architecture": "topk", "k": float("nan")}, "k: nan: must be a whole number"),
        ({"normalize_activations": "whitening"}, "normalize_activations: 'whitening'; known are none"),
        ({"normalize_activations": "expected_average_only_in"}, "give input_scale="),
        ({"metadata": {"sae_lens_version": "6.0", "hook_name": ["x"]}}, r"hook_name: \['x'\]: must be a text"),
        ({"metadata": {"sae_lens_version": "6.0"}}, "does not say which values it reads: give reads="),
        ({"metadata": {"sae_lens_version": "6.0", "hook_name": "blocks.1.attn.hook_z"}}, "the model has no such"),
        ({"activation_fn": "tanh-relu"}, "activation_fn: 'tanh-relu' is not read"),
    ],
)
def test_configurations_are_refused_in_a_line(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(PellucidError, match=said):
        Dictionary.open(copy(SINGLE, tmp_path, config), model())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"W_dec": None}, "array W_dec: is missing"),
        ({"W_dec": np.ones((F - 1, D), np.float32)}, r"W_dec: has shape \(39, 12\); it must be \(40, any\)"),
        ({"W_dec": np.ones((F, D + 1), np.float32)}, "W_dec: has vectors of 13 values; W_enc reads 12"),
        ({"b_enc": np.full(F, np.nan, np.float32)}, "b_enc: has NaN or infinite values"),
        ({"W_enc": np.full((D, F), np.inf, np.float32)}, "W_enc: has NaN or infinite values"),
        ({"W_enc": np.empty((0, F), np.float32)}, r"W_enc: has shape \(0, 40\)"),
        ({"scaling_factor": np.full(F, 2, np.float32)}, "finetuned scaling factors are not read"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        Dictionary.open(copy(SINGLE, tmp_path, **arrays), model())


def test_files_before_version_6(tmp_path: Path) -> None:
    old = {
        "architecture": None, "metadata": None, "hook_point": "blocks.1.hook_resid_post", "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5}, "sae_lens_version": "5.1.0", "normalize_activations": False,
    }  # fmt: skip
    dictionary = Dictionary.open(copy(SINGLE, tmp_path, old), model())
    x = np.random.default_rng(0).standard_normal((4, D)).astype(np.float32)
    assert dictionary.coders[1].activation == "top-k"
    assert ((dictionary.coders[1].encode(x) != 0).sum(1) <= 5).all()


def test_the_factor_of_the_inputs_is_folded(tmp_path: Path) -> None:
    folder = copy(SINGLE, tmp_path, {"normalize_activations": "expected_average_only_in"})
    plain, scaled = opened(SINGLE).coders[1], Dictionary.open(folder, model(), input_scale=0.25).coders[1]
    x = np.random.default_rng(0).standard_normal((4, D)).astype(np.float32)
    np.testing.assert_allclose(
        scaled.decode(scaled.active(4 * x), 4 * x), 4 * plain.decode(plain.active(x), x), rtol=1e-4, atol=1e-4
    )


def test_thresholds_as_logarithms_and_one_number(tmp_path: Path) -> None:
    case = "saelens-jumprelu"
    expected, x = opened(case).coders[1], np.random.default_rng(0).standard_normal((20, D)).astype(np.float32)
    (tmp_path / "a").mkdir()
    stored = copy(case, tmp_path / "a", threshold=None, log_threshold=np.full(F, np.log(0.5), np.float32))
    one = copy(case, tmp_path, {"architecture": "batchtopk"}, threshold=None,
               topk_threshold=np.array(0.5, np.float32))  # fmt: skip
    found = [Dictionary.open(folder, model()).coders[1].encode(x) for folder in (stored, one)]
    before = expected.encode(x)
    assert (found[0] == found[1]).all()
    assert found[0][found[0] > 0].min() > 0.5
    assert (found[0][before > 0.5] == before[before > 0.5]).all()


@pytest.mark.parametrize("name", ["nothing", "a.pt", "empty.npz", "text.npz", "sae_weights.safetensors"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    if name != "nothing":
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"no dictionary")
    with pytest.raises(FileFormatError):
        Dictionary.open(tmp_path / name, model(), **GEMMA_2)


def test_npz_files_are_not_trusted(tmp_path: Path) -> None:
    good = dict(np.load(GOLDENS / "gemma-scope" / "params.npz"))
    for number, (wrong, said) in enumerate(
        [
            ({"W_enc": np.zeros((5000, 5000), np.float32)}, "expands to"),
            ({"W_enc": np.array([None])}, "object"),
            ({"W_enc": np.zeros((D, F), np.int64)}, "floats of at most 64 bits"),
            ({"threshold": np.full(F, np.nan, np.float32)}, "NaN"),
            ({"threshold": np.ones(F - 1, np.float32)}, "has shape"),
        ]
    ):
        path = tmp_path / f"{number}.npz"
        np.savez_compressed(path, **{**good, **wrong}) if number == 0 else np.savez(path, **{**good, **wrong})
        with pytest.raises(FileFormatError, match=said):
            Dictionary.open(path, model(), **GEMMA_2)
    with pytest.raises(InvalidRequest, match="does not say which values it reads"):
        Dictionary.open(GOLDENS / "gemma-scope", model())


@pytest.mark.parametrize("text", ["a: 1\na: 2", "key: |\n  text", "just words", "list:\n  - a\nb: {c: d}\n  e"])
def test_other_yaml_is_refused(tmp_path: Path, text: str) -> None:
    folder = copy(SEVERAL, tmp_path)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(FileFormatError, match="line"):
        Dictionary.open(folder, model())


def test_large_decoders_are_read_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = opened(SEVERAL)
    monkeypatch.setattr("pellucid.trace.dictionaries.coder_weights.IN_MEMORY", 0)
    folder = copy(SEVERAL, tmp_path)
    dictionary = Dictionary.open(folder, model())
    some = np.array([39, 3])
    for layer, coder in dictionary.coders.items():
        assert coder.vectors(some).tobytes() == expected.coders[layer].vectors(some).tobytes()
    file = folder / "W_dec_0.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    file.write_bytes(raw)
    with pytest.raises(FileFormatError, match="NaN"):
        dictionary.coders[0].vectors(some)


JUMP, GATED, TOP_K, ACROSS = "saelens-jumprelu", "saelens-gated", "saelens-topk", "saelens-transcoder"
OLD = {"metadata": None, "hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "5.1.0"}
SPARSE, SPARSE_ACROSS = "sparsify/layers.1", "sparsify/layers.1.mlp"
SCOPE = "gemma-scope-2/transcoder/layer_1_width_40_l0_small_affine"


def of_version_6(**more: Any) -> dict[str, Any]:
    return {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", **more}}


@pytest.mark.parametrize(
    ("case", "config", "said"),
    [
        (SINGLE, {"d_in": 64}, "d_in: 64 contradicts the arrays, which have 12: correct it, or use"),
        (JUMP, {"d_sae": 41}, "d_sae: 41 contradicts the arrays, which have 40"),
        (ACROSS, {"d_out": 13}, "d_out: 13 contradicts the arrays, which have 12"),
        (SINGLE, {"d_in": [12]}, r"d_in: \[12\] contradicts the arrays"),
        (SINGLE, {"architecture": "jumprelu"}, "array threshold: is missing"),
        (SINGLE, {"architecture": "gated"}, "array r_mag: is missing"),
        (ACROSS, {"architecture": "skip_transcoder"}, "array W_skip: is missing"),
        (JUMP, {"architecture": "standard"}, "array threshold: is not used with architecture=standard"),
        (JUMP, {"architecture": "topk", "k": 5}, "array threshold: is not used with architecture=topk"),
        ("saelens-skip-transcoder", {"architecture": "transcoder"}, "array W_skip: is not used"),
        (TOP_K, {"architecture": "standard"}, "k: 5 contradicts architecture=standard, which has no k"),
        (TOP_K, {"k": 41}, "k: 41: must be a whole number from 1 to the 40 features"),
        (TOP_K, {"activation_fn": "tanh-relu"}, "activation_fn: 'tanh-relu' is not read with architecture=topk"),
        (GATED, {**OLD, "architecture": "gated", "activation_fn": "topk", "activation_fn_kwargs": {"k": 5}},
         "array b_enc: is missing"),
        (SINGLE, {**OLD, "architecture": None, "activation_fn": "topk", "activation_fn_kwargs": {"k": 5}, "k": 6},
         "activation_fn_kwargs.k: 5 contradicts k, which is 6"),
        (SINGLE, {**OLD, "hook_point": "blocks.0.hook_resid_post"}, "hook_point: 'blocks.0.hook_resid_post' contr"),
        (SINGLE, {**OLD, "hook_layer": 2}, "hook_layer: 2 contradicts the hook 'blocks.1.hook_resid_post': correct"),
        (SINGLE, {**OLD, "hook_point_layer": 2}, "hook_layer: 2 contradicts the hook"),
        (SINGLE, of_version_6(hook_layer="1"), "hook_layer: '1' contradicts the hook"),
        (SINGLE, of_version_6(hf_hook_name="model.layers.2"), "hf_hook_name: 'model.layers.2' contradicts hook_name"),
        (SINGLE, {"hook_name": "blocks.2.hook_resid_post"}, "metadata.hook_name: 'blocks.1.hook_resid_post' contrad"),
        (SINGLE, of_version_6(hook_name_out="blocks.2.hook_resid_post"), "hook_name_out: .* contradicts architecture"),
        (ACROSS, of_version_6(), "does not say which values the transcoder writes: give writes="),
        (ACROSS, {"apply_b_dec_to_input": True}, "apply_b_dec_to_input: True contradicts architecture=transcoder"),
        (SINGLE, {"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input: 'false': must be true or false"),
        (TOP_K, {"rescale_acts_by_decoder_norm": "yes"}, "must be true or false"),
        (SINGLE, {"finetuning_scaling_factor": True}, "array scaling_factor: is missing"),
        (SPARSE, {"d_in": 13}, "d_in: 13 contradicts the arrays, which have 12"),
        (SPARSE, {"num_latents": 41}, "num_latents: 41 contradicts the arrays, which have 40"),
        (SPARSE, {"k": 41}, "k: 41: must be a whole number from 1 to the 40 features"),
        (SPARSE, {"skip_connection": True}, "array W_skip: is missing"),
        (SPARSE, {"transcode": 1}, "transcode: 1: must be true or false"),
        (SPARSE_ACROSS, {"skip_connection": False}, "array W_skip: is not used with skip_connection=False"),
        (SCOPE, {"width": 16384}, "width: 16384 contradicts the arrays, which have 40"),
        (SCOPE, {"affine_connection": False}, "array affine_skip_connection: is not used with architecture=jump_relu"),
        (SCOPE, {"architecture": "topk"}, "architecture: 'topk': must be jump_relu"),
        (SCOPE, {"hf_hook_point_in": "model.layers.2.output"}, "'model.layers.2.output' contradicts the folder layer"),
    ],
)  # fmt: skip
def test_configurations_that_contradict_the_arrays_are_refused(
    tmp_path: Path, case: str, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(PellucidError, match=said) as error:
        Dictionary.open(copy(case, tmp_path, config), model())
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("case", "config"),
    [
        (SINGLE, {"dtype": "bfloat16", "device": "cuda:3", "d_in": None, "d_sae": 40.0, "expansion_factor": 4}),
        (SINGLE, of_version_6(hook_layer=1, hf_hook_name="model.layers.1", hook_layer_out=None)),
        (SINGLE, {**OLD, "architecture": None, "activation_fn_str": "relu", "activation_fn_kwargs": {}, "k": None}),
        (JUMP, {"activation_fn": "relu"}),
        (SPARSE, {"num_latents": None, "expansion_factor": 4}),
        (SCOPE, {"width": 40, "l0": 7, "type": "transcoder"}),
    ],
)
def test_fields_that_change_nothing_are_read(tmp_path: Path, case: str, config: dict[str, Any]) -> None:
    assert Dictionary.open(copy(case, tmp_path, config), model()).coders[1].features == F


def test_a_hook_that_is_given_replaces_contradicting_fields(tmp_path: Path) -> None:
    folder = copy(SINGLE, tmp_path, {**OLD, "hook_layer": 2})
    dictionary = Dictionary.open(folder, model(), reads="blocks.2.hook_resid_post")
    assert dictionary.coders[2].reads.name == "blocks.2.residual"


@pytest.mark.parametrize(
    ("case", "old", "new", "said"),
    [
        (SEVERAL, "cross_layer_transcoder", "transcoder_set", "model_kind: 'transcoder_set' contradicts the arrays"),
        ("circuit-tracer-skip", "transcoder_set", "cross_layer_transcoder", "contradicts the arrays, which are"),
        (SEVERAL, "cross_layer_transcoder", "crosscoder", "model_kind: 'crosscoder' is not read; known are"),
        (SEVERAL, "model_kind:", "n_layers: 4\nmodel_kind:", "n_layers: '4' contradicts the arrays, which have 3"),
        (SEVERAL, "model_kind:", "d_model: 16\nmodel_kind:", "d_model: '16' contradicts the arrays, which have 12"),
        (SEVERAL, "model_kind:", "transcoders:\n - a\n - b\nmodel_kind:", "transcoders: .* lists 2 layers, and the"),
        (SEVERAL, "feature_output_hook: hook_mlp_out", "", "does not say which values the transcoder writes"),
    ],
)  # fmt: skip
def test_yaml_that_contradicts_the_files_is_refused(tmp_path: Path, case: str, old: str, new: str, said: str) -> None:
    folder = copy(case, tmp_path)
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))
    with pytest.raises(PellucidError, match=said):
        Dictionary.open(folder, model())


@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("circuit-tracer-skip", "layer_1.safetensors"),
        (SEVERAL, "W_enc_1.safetensors"),
        ("gemma-scope-2/crosscoder/layer_0_1_2_width_40_l0_small", "params_layer_1.safetensors"),
    ],
)
def test_a_missing_layer_is_named(tmp_path: Path, case: str, file: str) -> None:
    folder = copy(case, tmp_path)
    (folder / file).unlink()
    with pytest.raises(FileFormatError, match=f"{file}: is missing, and .*2.safetensors is there"):
        Dictionary.open(folder, model())


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        (SINGLE, "sae_weights.safetensors"),
        (SPARSE, "sae.safetensors"),
        (SCOPE, "params.safetensors"),
        ("circuit-tracer-skip", "layer_2.safetensors"),
        (SEVERAL, "W_enc_1.safetensors"),
        (SEVERAL, "W_dec_1.safetensors"),
    ],
)
def test_arrays_that_nothing_uses_are_refused(tmp_path: Path, case: str, weights: str) -> None:
    folder = copy(case, tmp_path, weights=weights, b_dec_out=np.ones(D, np.float32))
    with pytest.raises(FileFormatError, match=r"array b_dec_out: is not used with .*state what the arrays"):
        Dictionary.open(folder, model())


def test_arrays_of_npz_that_nothing_uses_are_refused(tmp_path: Path) -> None:
    arrays = dict(np.load(GOLDENS / "gemma-scope" / "params.npz"))
    np.savez(tmp_path / "a.npz", **arrays, W_skip=np.ones((D, D), np.float32))
    with pytest.raises(FileFormatError, match="array W_skip: is not used with JumpReLU"):
        Dictionary.open(tmp_path / "a.npz", model(), **GEMMA_2)
