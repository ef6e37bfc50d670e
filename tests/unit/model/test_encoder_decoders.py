"""Each family of encoder-decoders on tiny random models, against transformers (oracles/sources_oracle.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.metadata import Metadata
from support.model_files import gguf, safetensors
from support.reference import Reference
from support.tiny import SOURCES, model_runner, opened

from pellucid.errors import PellucidError, UnsupportedModel
from pellucid.model.shapes import ENCODER
from pellucid.model.weight_map import Model
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.weights.open import open_checkpoint


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(SOURCES[name] / "expected.npz") as file:
        return {key: file[key] for key in ("source_ids", "decoder_ids", "hidden", "logits")}


@pytest.mark.parametrize("name", SOURCES)
def test_spec_means_what_transformers_computes(name: str) -> None:
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    with opened(SOURCES[name]) as (checkpoint, model):
        assert model.spec.encoder
        assert model.spec.start == (ids[0],)
        own = {slot.removeprefix(ENCODER): one for slot, one in model.slots.items() if slot.startswith(ENCODER)}
        hidden = Reference(checkpoint, Model(model.spec.encoder, own, "layers")).rows(source)
        logits = Reference(checkpoint, model, source=source).logits(ids)
    for got, expected in ((hidden, wanted["hidden"]), (logits, wanted["logits"])):
        np.testing.assert_allclose(got, expected, rtol=0, atol=max(5e-5, 1e-5 * float(np.abs(expected).max())))


@pytest.mark.parametrize("name", SOURCES)
def test_logits_of_every_position(name: str) -> None:
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    table = BlockTable()
    with model_runner(SOURCES[name], threads=2) as runner:
        runner.forward([Chunk(table, source, 0, encodes=True)])
        got = runner.forward([Chunk(BlockTable(), ids, len(ids), table)])
        assert runner.encoder is not None
        one = BlockTable()
        by_one = [runner.forward([Chunk(one, [token], 1, table)])[0] for token in ids]
    scale = float(np.abs(wanted["logits"]).max())
    np.testing.assert_allclose(got, wanted["logits"], rtol=0, atol=1e-4 * scale)
    np.testing.assert_array_equal(np.stack(by_one), got)


@pytest.mark.parametrize("name", SOURCES)
def test_default_precision_keeps_the_direction_of_the_logits(name: str) -> None:
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    table = BlockTable()
    with model_runner(SOURCES[name], activation_bits=8) as runner:
        runner.forward([Chunk(table, source, 0, encodes=True)])
        got = runner.forward([Chunk(BlockTable(), ids, len(ids), table)])
    cosine = (got * wanted["logits"]).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(wanted["logits"], axis=-1)
    assert cosine.min() > 0.999


GGUF_NAMES = {
    "shared": "token_embd",
    "lm_head": "output",
    "final_layer_norm": "output_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention": "attn",
    "layer.1.EncDecAttention": "cross_attn",
    "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wi": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
}


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder."""
    checkpoint = open_checkpoint(folder)
    try:
        return {
            name: checkpoint.data(name).view(np.float32).reshape(one.shape).copy()
            for name, one in checkpoint.tensors.items()
        }
    finally:
        checkpoint.close()


def gguf_name(name: str) -> str:
    """The name in llama.cpp of a tensor of T5 in transformers."""
    side, _, rest = name.removesuffix(".weight").partition(".")
    if side not in ("encoder", "decoder"):
        return f"{GGUF_NAMES[side]}.weight"
    if rest == "final_layer_norm":
        return f"{side[:3]}.output_norm.weight"
    _, block, rest = rest.split(".", 2)
    norms = {
        "layer.1.layer_norm": "ffn_norm" if side == "encoder" else "cross_attn_norm",
        "layer.2.layer_norm": "ffn_norm",
    }
    if rest in GGUF_NAMES or rest in norms:
        rest = {**GGUF_NAMES, **norms}[rest]
    elif "Dense" in rest:
        rest = GGUF_NAMES[rest.split(".", 2)[2]]
    else:
        place, _, part = rest.rpartition(".")
        rest = f"{GGUF_NAMES[place]}_{part}"
    return f"{side[:3]}.blk.{block}.{rest}.weight"


def write_gguf(source: Path, path: Path, architecture: str = "t5") -> Path:
    """A tiny T5 as llama.cpp's converter writes it."""
    config = json.loads((source / "config.json").read_text())
    tensors = arrays(source)
    own = {
        "context_length": 512, "embedding_length": config["d_model"], "feed_forward_length": config["d_ff"],
        "block_count": config["num_layers"], "decoder_block_count": config["num_decoder_layers"],
        "attention.head_count": config["num_heads"], "attention.key_length": config["d_kv"],
        "attention.value_length": config["d_kv"], "attention.layer_norm_epsilon": 1e-6,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.relative_buckets_count": config["relative_attention_num_buckets"], "decoder_start_token_id": 0,
    }  # fmt: skip
    if not config["scale_decoder_outputs"]:
        tensors["lm_head.weight"] = tensors["shared.weight"]
    if architecture == "t5encoder":
        tensors = {name: one for name, one in tensors.items() if not name.startswith("decoder")}
        own = {key: value for key, value in own.items() if not key.startswith("decoder")}
    metadata = {"general.architecture": architecture, "general.name": "tiny"}
    metadata |= {f"{architecture}.{key}": value for key, value in own.items()}
    path.write_bytes(gguf(metadata, {gguf_name(name): (x.shape, 0, x.tobytes()) for name, x in tensors.items()}))
    return path


@pytest.mark.parametrize("name", ["t5", "t5-odd", "umt5"])
def test_a_gguf_of_t5_is_the_t5_of_transformers(name: str, tmp_path: Path) -> None:
    """llama.cpp states no greatest distance of the buckets; it is 128."""
    folder = Path(shutil.copytree(SOURCES[name], tmp_path / name))
    config = json.loads((folder / "config.json").read_text()) | {"relative_attention_max_distance": 128}
    (folder / "config.json").write_text(json.dumps(config))
    wanted = golden(name)
    source, ids = wanted["source_ids"].tolist(), wanted["decoder_ids"].tolist()
    found = []
    for path in (folder, write_gguf(folder, tmp_path / "t5.gguf")):
        table = BlockTable()
        with model_runner(path) as runner:
            assert runner.spec.start == (0,)
            runner.forward([Chunk(table, source, 0, encodes=True)])
            found.append(runner.forward([Chunk(BlockTable(), ids, len(ids), table)]))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - wanted["logits"]).max() > 1e-3  # the distance counts


def test_an_encoder_of_t5_alone_makes_sentence_vectors(tmp_path: Path) -> None:
    source = golden("t5")["source_ids"].tolist()
    folder = Path(shutil.copytree(SOURCES["t5"], tmp_path / "t5"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"relative_attention_max_distance": 128, "architectures": ["T5EncoderModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    path = write_gguf(folder, tmp_path / "t5.gguf", "t5encoder")
    tensors = arrays(folder)
    kept = {name: x for name, x in tensors.items() if not name.startswith("decoder")}
    raw = {name: ("F32", x.shape, x.tobytes()) for name, x in kept.items()}
    (folder / "model.safetensors").write_bytes(safetensors(raw))
    vectors = []
    for one in (path, folder):
        with opened(one) as (checkpoint, model), model_runner(one) as runner:
            assert model.spec.encoder is None
            vectors.append(runner.forward([Chunk(BlockTable(), source, 0)])[0])
            mean = Reference(checkpoint, model).rows(source).mean(0)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


ODD_VALUES = (None, -1, 0, 1, 3, 10**9, 0.5, "x", True, [], {}, [1, 2])


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.endswith("-odd")])
def test_a_damaged_configuration_is_a_spec_or_an_error_in_one_line(name: str) -> None:
    checkpoint = Metadata.of(SOURCES[name])
    usual, refused, lines = checkpoint.read(), 0, 0
    for key in checkpoint.metadata:
        for value in ODD_VALUES:
            try:
                checkpoint.changed(**{key: value}).read()
            except PellucidError as error:
                refused += 1
                lines += str(error).count("\n")
    assert refused > 50
    assert lines == 0
    assert checkpoint.read().spec == usual.spec


def test_a_vocabulary_of_the_decoder_alone_is_refused() -> None:
    for changes in ({"share_encoder_decoder_embeddings": False}, {"decoder_vocab_size": 99}):
        with pytest.raises(PellucidError, match=next(iter(changes))):
            Metadata.of(SOURCES["marian"]).changed(**changes).read()


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("ending", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_a_class_with_another_head_is_refused(name: str, ending: str) -> None:
    """Not because of a tensor: these classes have other tensors, and some have only an encoder."""
    changed = Metadata.of(SOURCES[name]).changed(architectures=[f"{name.title()}For{ending}"])
    with pytest.raises(UnsupportedModel, match=f"a head for {ending} is not supported in an encoder-decoder"):
        changed.read()


def test_the_first_token_of_the_decoder(tmp_path: Path) -> None:
    """generation_config.json counts before config.json, and bos_token_id if no file states the token."""
    folder = Path(shutil.copytree(SOURCES["mbart"], tmp_path / "mbart"))

    def start(generation: dict[str, object] | None, **config: object) -> tuple[int, ...]:
        path, own = (folder / "generation_config.json", json.loads((SOURCES["mbart"] / "config.json").read_text()))
        path.unlink(missing_ok=True)
        if generation is not None:
            path.write_text(json.dumps(generation))
        (folder / "config.json").write_text(json.dumps(own | config))
        with opened(folder) as (_, model):
            return model.spec.start

    assert start({"decoder_start_token_id": 7, "bos_token_id": 5}) == (7,)
    assert start({"bos_token_id": 5}) == (2,)
    assert start({"bos_token_id": 5}, decoder_start_token_id=None) == (5,)
    assert start(None) == (2,)
    with pytest.raises(PellucidError, match="decoder_start_token_id"):
        start(None, decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(PellucidError, match="must be a token id, from 0 to 127"):
        start({"decoder_start_token_id": 128})
