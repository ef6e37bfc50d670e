"""No family silently ignores a metadata key, a tensor or a field of a spec.

A key that is known to change results changes the spec or is refused by name. Each key that a reader asks for changes
something. Each field of the spec changes the plan.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import Struct
from msgspec.structs import replace
from support.metadata import GGUF, Metadata
from support.tiny import ENCODERS, OF_FAMILY, SOURCES, TINY, opened

from pellucid import pipeline
from pellucid.errors import FileFormatError, PellucidError, UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.decoder_outputs import as_encoder
from pellucid.model.family import Family, known_families
from pellucid.model.outputs import Head
from pellucid.model.positions import QueryScale, RelativeBuckets, RelativePositions, Rotary, RotaryScaling
from pellucid.model.read import read_model
from pellucid.model.spec import (
    AltUp,
    Attention,
    Block,
    DeltaNet,
    Embedding,
    FeedForward,
    Latent,
    Mamba,
    Mixture,
    Norm,
    PerLayer,
    RelativeEmbedding,
    Router,
    ShortConvolution,
)
from pellucid.model.unread_keys import CHANGING, GGUF_CHANGING, GGUF_HARMLESS, HARMLESS, IN_ROPE
from pellucid.plan.bind import layouts
from pellucid.weights.checkpoint import Tensor

VALUES: tuple[Any, ...] = (True, False, 7, 3, 0.625, 24, "other", "linear", ["other"], {"a": 1})
"""Values to try for a key of unknown type."""

MODELS = {**TINY, **OF_FAMILY}
ALONE = {name: path for name, path in MODELS.items() if "text_config" not in Metadata.of(path).metadata}
"""Models that are not the text part of a larger model; both have the same readers (test_text_part.py)."""
FOLDERS = {f"folder of {name}": (lambda at=path: Metadata.of(at)) for name, path in ALONE.items()}
FILES = {f"gguf of {name}": make for name, make in GGUF.items()}
ALL = {**FOLDERS, **FILES}


OTHER_TENSORS = (
    *("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
    *("score.weight", "classifier.weight", "classifier.bias", "qa_outputs.weight", "v_head.summary.weight"),
    *("cls.predictions.bias", "cls.output.weight", "pooler.dense.weight", "embeddings.position_ids"),
    *("mtp.fc.weight", "lora.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
    *("blk.0.attn_q.weight.lora_a", "model.layers.0.self_attn.q_proj.bias.other", "mm.0.weight"),
    *("model.layers.0.self_attn.rotary_emb.inv_freq", "output_norm.other", "blk.0.ffn_up.scale"),
)


def prefix(checkpoint: Metadata) -> str:
    return f"{checkpoint.metadata['general.architecture']}." if checkpoint.kind == "gguf" else ""


def outcome(checkpoint: Metadata) -> Any:
    """The spec and the tensors that it uses, or the error message."""
    try:
        model = checkpoint.read()
    except PellucidError as error:
        assert isinstance(error, (UnsupportedModel, FileFormatError))  # noqa: PT017
        return str(error)
    return model.spec, model.slots


def listed(value: Any) -> Any:
    """A metadata value, an array as a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def at(checkpoint: Metadata, path: tuple[str, ...], value: Any) -> Metadata:
    made = checkpoint.changed()
    inner = made.metadata
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return made


def some(values: tuple[Any, ...], name: str) -> list[Any]:
    """Three of the values, chosen by the model's name, so that all models together try every value."""
    turn = list(ALL).index(name)
    return [values[(3 * turn + i) % len(values)] for i in range(3)]


def noticed(checkpoint: Metadata, path: tuple[str, ...], values: Any) -> bool:
    """True if one of the values changes the spec or is refused."""
    before = outcome(checkpoint)
    return any(outcome(at(checkpoint, path, value)) != before for value in values)


def test_every_architecture_has_a_tiny_model() -> None:
    folders = {Metadata.of(path).metadata["model_type"] for path in {**ALONE, **ENCODERS, **SOURCES}.values()}
    for family in known_families().values():
        read = {reader for kind, reader in family.safetensors.items() if kind in folders}
        assert set(family.safetensors.values()) <= read, family.name
        assert set(family.gguf) <= set(GGUF)


@pytest.mark.parametrize("name", ALL)
def test_a_key_that_changes_results_is_read_or_refused(name: str) -> None:
    checkpoint = ALL[name]()
    start, table = prefix(checkpoint), GGUF_CHANGING if checkpoint.kind == "gguf" else CHANGING
    whole = Config(checkpoint.metadata, checkpoint.path, start)
    read = asked(checkpoint, Config(checkpoint.metadata, checkpoint.path))
    for key, neutral in table.items():
        full = start + key
        values = [v for v in VALUES if v != listed(checkpoint.metadata.get(full)) and not neutral(v, whole)]
        if full in read:
            assert noticed(checkpoint, (full,), values), f"{key} is read and makes no difference"
            continue
        for value in (v for v in some(VALUES, name) if v in values):
            after = outcome(at(checkpoint, (full,), value))
            assert isinstance(after, str), f"{key} = {value!r} is ignored"
            assert key in after


@pytest.mark.parametrize("name", ALL)
def test_a_key_that_is_switched_off_does_no_harm(name: str) -> None:
    checkpoint = ALL[name]()
    start, table = prefix(checkpoint), GGUF_CHANGING if checkpoint.kind == "gguf" else CHANGING
    whole, before = Config(checkpoint.metadata, checkpoint.path, start), outcome(checkpoint)
    config = Config(checkpoint.metadata, checkpoint.path)
    read = asked(checkpoint, config)
    for key, neutral in table.items():
        if start + key in read:
            continue
        for value in some((*VALUES, None, 0, 1, "", [], {}), name):
            if value is not None and not neutral(value, whole):
                continue
            assert outcome(at(checkpoint, (start + key,), value)) == before, f"{key} = {value!r}"


def family_of(checkpoint: Metadata) -> tuple[Family, str]:
    """The family that reads a file, and the architecture."""
    kind = checkpoint.kind
    name = checkpoint.metadata["general.architecture" if kind == "gguf" else "model_type"]
    (family,) = (one for one in known_families().values() if name in one.readers(kind))
    return family, name


def asked(checkpoint: Metadata, config: Config) -> set[str]:
    """Keys that a family's reader asks for, and the reader of the outputs of a language model."""
    family, name = family_of(checkpoint)
    model = family.readers(checkpoint.kind)[name](checkpoint, config)
    if model.spec.generates and not model.spec.encoder:
        as_encoder(checkpoint, config, model)
    return config.read


LABELS = {"general.name"}


@pytest.mark.parametrize("name", ALL)
def test_what_a_reader_asks_for_makes_a_difference(name: str) -> None:
    checkpoint = ALL[name]()
    for key in sorted(asked(checkpoint, Config(checkpoint.metadata, checkpoint.path)) - LABELS):
        path = (key,) if checkpoint.kind == "gguf" else tuple(key.split("."))
        current: Any = checkpoint.metadata
        for part in path:
            current = current.get(part) if isinstance(current, Mapping) else None
        current = listed(current)
        if current == {} or (isinstance(current, Mapping) and current):
            continue  # a table: its keys are tested instead
        others = [value for value in VALUES if value != current]
        assert noticed(checkpoint, path, others), f"{key} is read and makes no difference"


@pytest.mark.parametrize(
    "name", [name for name, path in ALONE.items() if "rope_parameters" in (path / "config.json").read_text()]
)
@pytest.mark.parametrize(
    "key",
    [
        *sorted(set(IN_ROPE) - {"mrope_section", "mrope_interleaved", "finetuned"}),
        "beta_fast",
        "mscale",
        "short_factor",
        "whatever",
    ],
)
def test_a_key_of_the_rotary_table_is_read_or_refused(name: str, key: str) -> None:
    checkpoint = Metadata.of(ALONE[name])
    if not any(attention.rotary for attention in checkpoint.read().spec.attentions):
        return  # another key says that there are no rotary positions
    parameters = checkpoint.metadata["rope_parameters"]
    types = [t for t, value in parameters.items() if isinstance(value, dict)]
    for path in [("rope_parameters", t) for t in types] or [("rope_parameters",)]:
        current: Any = checkpoint.metadata
        for part in path:
            current = current[part]
        if key == "original_max_position_embeddings" and current["rope_type"] != "llama3":
            continue  # only llama3 scaling has this key
        assert noticed(checkpoint, (*path, key), [0.625 if current.get(key) != 0.625 else 0.5])


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_that_is_not_read_is_refused_or_told(name: str) -> None:
    """Extra tensors: heads, adapters and other parts beside the model's own, and rotary factors."""
    checkpoint = ALL[name]()
    family, _ = family_of(checkpoint)
    for extra in OTHER_TENSORS:
        changed = checkpoint.changed()
        changed.tensors[extra] = Tensor(extra, (8,), "F32", checkpoint.path, 0, 32)
        read = set[str]()

        def data(tensor: str, read: set[str] = read) -> np.ndarray:
            read.add(tensor)
            return np.ones(8, np.float32).view(np.uint8)

        changed.data = data  # type: ignore[method-assign]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            after = outcome(changed)
        said = after if isinstance(after, str) else " ".join(str(one.message) for one in told)
        silent = any(re.fullmatch(pattern, extra) for pattern in family.unused)
        computed = silent and extra.endswith(("pooler.dense.weight", "position_ids", "inv_freq"))
        assert extra in read or "not read" in said or isinstance(after, str) or computed, extra


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_key_is_named_in_one_line(name: str) -> None:
    checkpoint = ALL[name]()
    start, before = prefix(checkpoint), outcome(checkpoint)
    keys = {f"{start}new_{i}\n": value for i, value in enumerate((1, "x" * 9999, [1], {"a": 1}, 0.5, True, 2))}
    changed = checkpoint.changed()
    changed.metadata.update(keys)
    with pytest.warns(UserWarning, match="unknown keys, which are not used: .*new_0.*and 2 more") as caught:
        assert outcome(changed) == before
    (message,) = (str(one.message) for one in caught)
    assert "\n" not in message
    assert len(message) < 700
    off = checkpoint.changed()
    off.metadata.update({f"{start}new_{i}": value for i, value in enumerate((None, False, 0, 0.0, "", [], {}))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(off) == before


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not [key for key in CHANGING if HARMLESS.fullmatch(key)]
    assert not [key for key in GGUF_CHANGING if GGUF_HARMLESS.fullmatch(key)]


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_that_the_family_does_not_use_is_refused(name: str) -> None:
    checkpoint = ALL[name]()
    some = next(iter(checkpoint.tensors.values()))
    for extra in ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias", "score.weight", "x" * 9999):
        more = checkpoint.changed()
        more.tensors[extra] = replace(some, name=extra)
        message = outcome(more)
        # A bias in only some layers is reported as missing in another layer.
        assert extra[:60] in message or "attn_q.bias: tensor missing" in message
        assert len(message) < 400


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("bert", "bert.pooler.dense.bias"),
        ("bert", "embeddings.position_ids"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("gemma4", "model.layers.3.self_attn.k_proj.weight"),
        ("gemma4", "model.layers.2.self_attn.k_norm.weight"),
    ],
)
def test_a_tensor_that_says_nothing_new_is_left_alone(name: str, extra: str) -> None:
    checkpoint = Metadata.of(TINY[name])
    before, some = outcome(checkpoint), next(iter(checkpoint.tensors.values()))
    checkpoint.tensors[extra] = replace(some, name=extra)
    assert outcome(checkpoint) == before


@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_a_head_of_its_own_is_used_even_if_the_file_says_that_it_is_tied(name: str) -> None:
    checkpoint = Metadata.of(TINY[name])
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    checkpoint.tensors["lm_head.weight"] = replace(embedding, name="lm_head.weight")
    model = checkpoint.read()
    assert model.spec.head is not None
    assert not model.spec.head.tied
    assert model.slots["project.weight"].tensor == "lm_head.weight"


def test_a_head_that_is_said_to_be_there_and_is_not() -> None:
    checkpoint = Metadata.of(TINY["llama-tied"]).changed(tie_word_embeddings=False)
    assert "lm_head.weight: tensor missing" in outcome(checkpoint)


SCALED = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("llama-tied", {"rope_theta": 1000.0, "rope_scaling": None}),
        ("llama-linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}}),
        ("gemma3", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}),
    ],
)
def test_the_older_way_to_write_rotary_positions_means_the_same(name: str, older: dict[str, Any]) -> None:
    checkpoint = Metadata.of(TINY[name])
    before = outcome(checkpoint)
    del checkpoint.metadata["rope_parameters"]
    checkpoint.metadata.update(older)
    assert outcome(checkpoint) == before


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"rope_theta": 500.0}, ("rope_theta", "10000", "500")),
        ("llama", {"rope_scaling": SCALED}, ("rope_type", "default", "linear")),
        ("llama-linear", {"rope_scaling": SCALED}, ("factor", "2.5", "4.0")),
        ("gemma3", {"rope_local_base_freq": 1e6}, ("rope_theta", "rope_local_base_freq", "10000")),
        ("gemma3", {"rope_scaling": SCALED}, ("full_attention", "rope_type", "linear")),
        ("gemma3", {"rope_parameters__rope_theta": 1e6}, ("rope_parameters.rope_theta", "not supported")),
        ("gemma3", {"sliding_window_pattern": 4}, ("sliding_window_pattern", "4", "layer_types")),
        ("llama-rope3", {"original_max_position_embeddings": 128}, ("64", "128")),
    ],
)
def test_two_ways_to_write_it_that_contradict_each_other(
    name: str, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = outcome(Metadata.of(TINY[name]).changed(**changes))
    assert isinstance(message, str)
    for word in words:
        assert word in message


def test_the_base_of_full_layers_under_its_other_name() -> None:
    base = GGUF["gemma3"]().metadata.get("gemma3.rope.freq_base", 10_000.0)
    same = GGUF["gemma3"]().changed(**{"gemma3.rope.global.freq_base": base})
    assert outcome(same) == outcome(GGUF["gemma3"]())
    other = GGUF["gemma3"]().changed(**{"gemma3.rope.global.freq_base": 500.0})
    other.metadata.pop("gemma3.rope.freq_base", None)
    bases = [block.attention.rotary.base for block in other.read().spec.blocks if block.attention.rotary]
    assert 500.0 in bases


def test_what_says_that_there_is_nothing() -> None:
    for name, changes in {
        "llama": {"quantization_config": {}, "bos_token_id": -1, "use_flash_attention_2": True},
        "bert": {"directionality": "bidi", "pooler_fc_size": 768},
    }.items():
        assert outcome(Metadata.of(TINY[name]).changed(**changes)) == outcome(Metadata.of(TINY[name]))
    sections = GGUF["llama"]().changed(**{"llama.rope.dimension_sections": [0, 0, 0, 0]})
    assert outcome(sections) == outcome(GGUF["llama"]())
    sections.metadata["llama.rope.dimension_sections"] = [16, 24, 24, 0]  # of images
    assert outcome(sections) == outcome(GGUF["llama"]())


PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt_oss": {"experts_per_token": 2, "initial_context_length": 4096},
    "deepseek_v3": {"ep_size": 1, "aux_loss_alpha": 0.001, "seq_aux": True},
    "deepseek_v2": {"scoring_func": "softmax", "ep_size": 8},
    "glm4_moe": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "gpt2": {"n_ctx": 1024, "predict_special_tokens": True, "summary_type": "cls_index"},
    "gptj": {"rotary": True},
    "gpt_neox": {"init_method": "small_init", "output_layer_init_method": "wang_init"},
    "starcoder2": {"norm_type": "layer_norm", "mlp_type": "default", "attention_softmax_in_fp32": True,
                   "scale_attention_softmax_in_fp32": True},
    "bloom": {"masked_softmax_fusion": True, "offset_alibi": 100, "skip_bias_add": True, "seq_length": 2048,
              "attention_softmax_in_fp32": True, "n_positions": 2048},
    "cohere2": {"order_of_interleaved_layers": "local_attn_first", "use_embedding_sharing": True,
                "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True},
    "granitemoehybrid": {"init_method": "mup", "normalization_function": "rmsnorm", "time_step_rank": 256},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1},
    "llama": {"activation": "swiglu", "norm_type": "RMSNorm", "seq_length": 32768, "n_ctx": 2048, "version": "1.0",
              "neftune_noise_alpha": 5},
    "mpt": {"init_config": {"name": "kaiming_normal_"}, "tokenizer_name": "EleutherAI/gpt-neox-20b"},
    "lfm2": {"block_use_swiglu": True, "block_use_xavier_init": True, "block_mlp_init_scale": 1.0,
             "block_out_init_scale": 1.0, "conv_use_xavier_init": True, "use_pos_enc": True},
    "falcon_h1": {"mamba_use_mlp": True, "mlp_expansion_factor": 8, "time_step_rank": "auto"},
    "electra": {"generator_size": 0.25},
    "bert": {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
}  # fmt: skip
"""Keys of published files that change nothing, by tiny model; some state again what another key states."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_files_that_change_nothing_are_silent(name: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY.get(name) or TINY[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(checkpoint.changed(**PUBLISHED[name])) == outcome(checkpoint)


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        ("gpt_oss", ("experts_per_token", "num_experts_per_tok")),
        ("lfm2", ("block_dim", "hidden_size")),
        ("lfm2", ("num_heads", "num_attention_heads")),
        ("lfm2", ("block_norm_eps", "norm_eps")),
        ("nemotron_h", ("num_query_groups", "num_key_value_heads")),
        ("nemotron_h", ("attention_head_dim", "head_dim")),
    ],
)
def test_a_key_that_states_a_number_again_must_agree(name: str, twice: tuple[str, str]) -> None:
    checkpoint, (key, other) = Metadata.of(TINY[name]), twice
    same = checkpoint.metadata[other]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(checkpoint.changed(**{key: same})) == outcome(checkpoint)
    refused = outcome(checkpoint.changed(**{key: 2 * same}))
    assert isinstance(refused, str)
    assert other in refused or key in refused


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "norm_type", "layer_norm"),
        ("starcoder2", "norm_type", "rms_norm"),
        ("llama", "activation", "geglu"),
        ("starcoder2", "mlp_type", "gated"),
        ("cohere2", "order_of_interleaved_layers", "global_attn_first"),
        ("cohere2", "use_parallel_block", False),
        ("phi3", "full_attn_mod", 2),
        ("gptj", "rotary", False),
        ("deepseek_v2", "scoring_func", "sigmoid"),
        ("glm4_moe", "scoring_func", "softmax"),
        ("lfm2", "theta", 10.0),
    ],
)
def test_other_values_of_such_keys_are_refused(name: str, key: str, value: Any) -> None:
    refused = outcome(Metadata.of(TINY[name]).changed(**{key: value}))
    assert isinstance(refused, str)
    assert key in refused


@pytest.mark.parametrize("table", ["rope_scaling", "rope_parameters"])
def test_yarn_that_says_that_the_model_was_trained_with_it(table: str) -> None:
    checkpoint = Metadata.of(TINY["llama"])
    base = checkpoint.metadata.pop("rope_parameters", {}).get("rope_theta", 10_000.0)
    checkpoint.metadata["rope_theta"] = base
    yarn = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    plain = outcome(checkpoint.changed(**{table: yarn}))
    assert not isinstance(plain, str)
    for finetuned in (True, False):
        assert outcome(checkpoint.changed(**{table: {**yarn, "finetuned": finetuned}})) == plain
    for key in ("attn_factor", "extrapolation_factor"):
        assert outcome(checkpoint.changed(**{table: {**yarn, key: 1}})) == plain
        assert isinstance(outcome(checkpoint.changed(**{table: {**yarn, key: 2}})), str)


def test_a_scaling_of_gguf_without_a_type_is_linear_as_in_llamacpp() -> None:
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        model = GGUF["llama"]().changed(**{key: 4.0}).read()
        rotary = model.spec.blocks[0].attention.rotary
        assert rotary is not None
        assert rotary.scaling == RotaryScaling("linear", 4.0, trained_context=128)


def test_both_kinds_of_layers_of_a_gguf_turn_as_much_of_a_head() -> None:
    blocks = GGUF["gemma3"]().changed(**{"gemma3.rope.dimension_count": 8}).read().spec.blocks
    assert {block.attention.window for block in blocks} == {0, 8}
    assert {block.attention.rotary.dims for block in blocks if block.attention.rotary} == {8}


def test_a_vocabulary_that_is_not_the_embedding() -> None:
    message = outcome(GGUF["llama"]().changed(**{"llama.vocab_size": 63}))
    assert message == "tiny.gguf: llama.vocab_size: is 63, but token_embd.weight has 64 rows"


# Another valid value for every number and choice of a spec.
OTHER: dict[tuple[type, str], Any] = {
    (Embedding, "scale"): 3.0,
    (ShortConvolution, "centered"): True,
    (RotaryScaling, "kind"): "llama3",
    (RotaryScaling, "factor"): 5.0,
    (RotaryScaling, "low_frequency_factor"): 1.5,
    (RotaryScaling, "high_frequency_factor"): 3.0,
    (RotaryScaling, "trained_context"): 4096,
    (RotaryScaling, "magnitude"): 1.25,
    (RotaryScaling, "fast"): 0.05,
    (RotaryScaling, "slow"): 2.0,
    (RotaryScaling, "whole_pairs"): False,
    (RotaryScaling, "short"): (3.0,) * 8,
    (RotaryScaling, "long"): (3.0,) * 8,
    (FeedForward, "limit"): 3.0,
    (FeedForward, "sharpness"): 3.0,
    (Router, "chosen"): 1,
    (Router, "score"): "sigmoid",
    (Router, "normalize"): True,
    (Router, "scale"): 0.3,
    (Router, "groups"): 2,
    (Router, "kept"): 3,
    (Router, "group_best"): 2,
    (Rotary, "base"): 20_000.0,
    (Rotary, "pairing"): "interleaved",
    (Rotary, "scaling"): RotaryScaling("linear", 7.0),
    (Rotary, "factors"): (2.0,) * 8,
    (Norm, "eps"): 0.5,
    (Norm, "kind"): "layer",
    (Norm, "weight"): False,
    (Norm, "bias"): False,
    (Attention, "scale"): 0.5,
    (Attention, "causal"): False,
    (Attention, "window"): 5,
    (Attention, "chunked"): True,
    (Mixture, "input_weights"): True,
    (QueryScale, "offset"): 1,
    (Attention, "rotary"): None,
    (Attention, "qk_norm"): None,
    (Attention, "softcap"): 9.0,
    (Attention, "qk_norm_whole"): True,
    (Attention, "value_dim"): 32,
    (Attention, "alibi"): True,
    (Attention, "alibi_scale"): 0.5,
    (Attention, "relative"): RelativeBuckets(4, 9),
    (RelativeBuckets, "count"): 8,
    (RelativeBuckets, "max_distance"): 64,
    (RelativeBuckets, "own"): True,
    (RelativePositions, "longest"): 100,
    (RelativePositions, "keys"): False,
    (RelativePositions, "queries"): False,
    (Attention, "alibi_most"): 4.0,
    (Attention, "alibi_rounded"): True,
    (Attention, "clip"): 1.0,
    (FeedForward, "sparsity"): 0.5,
    (AltUp, "active"): 1,
    (Router, "output_scale"): 0.5,
    (Attention, "sinks"): True,
    (Attention, "output_scale"): 0.5,
    (Attention, "query_scale"): QueryScale(0.2, 4),
    (Attention, "v_norm"): None,
    (Attention, "keys_as_values"): True,
    (Attention, "shared"): 0,
    (PerLayer, "scale"): 3.0,
    (PerLayer, "projection_scale"): 3.0,
    (PerLayer, "sum_scale"): 3.0,
    (PerLayer, "activation"): "relu",
    (QueryScale, "beta"): 0.7,
    (QueryScale, "length"): 3,
    (DeltaNet, "tiled"): True,
    (Mamba, "limits"): (0.1, 2.0),
    (Mamba, "multipliers"): (0.5,) * 5,
    (Mamba, "output_scale"): 0.25,
    (Mamba, "norm_first"): True,
    (FeedForward, "gate_scale"): 0.5,
    (FeedForward, "output_scale"): 0.5,
    (FeedForward, "activation"): "relu",
    (Head, "softcap"): 9.0,
    (Head, "scale"): 0.5,
    (Block, "placement"): "post",
    (Block, "residual_scale"): 0.5,
}
RECURRENT = {
    *((DeltaNet, name) for name in ("heads", "key_heads", "key_dim", "value_dim", "taps", "norm")),
    *((Mamba, name) for name in ("heads", "head_dim", "groups", "state", "taps", "norm")),
    *((Latent, name) for name in ("rank", "query_rank", "plain_dim", "norm")),
    *((Mamba, name) for name in ("conv_bias", "bias", "output_bias")),
    *((ShortConvolution, name) for name in ("taps", "bias")),
}
ELSEWHERE = {
    # Widths and counts that tensor shapes must match: a mismatch is an error.
    (Embedding, "vocabulary"), (Embedding, "width"), (Embedding, "types"), (Embedding, "norm"), (Embedding, "narrow"),
    (Embedding, "narrow_sum"), (Embedding, "norm_last"), (Rotary, "dims"), (Attention, "key_bias"),
    (Embedding, "norm_first"),  # it matters only if vectors of positions are added
    (RelativePositions, "span"), (RelativePositions, "shared"), (RelativePositions, "key_bias"),
    (RelativeEmbedding, "buckets"), (RelativeEmbedding, "norm"),
    (RelativeBuckets, "count"), (Attention, "disentangled"), (Attention, "heads"), (Attention, "kv_heads"),
    (Attention, "head_dim"), (Attention, "bias"),
    (Attention, "smoothed"), (FeedForward, "smoothed"),  # of matrices that are quantized when they are loaded
    *RECURRENT, (Attention, "output_bias"), (Attention, "gate"), (Attention, "latent"), (Block, "recurrent"),
    (Block, "scalar"), (PerLayer, "width"),
    (FeedForward, "width"), (FeedForward, "gated"), (FeedForward, "bias"),
    (Mixture, "router"), (Mixture, "expert"), (Mixture, "shared"), (Mixture, "shared_gate"),
    (Mixture, "norms"), (Router, "expert_scale"), (AltUp, "streams"), (AltUp, "scaled"),
    (Block, "laurel"), (PerLayer, "vocabulary"),
    (Router, "experts"), (Router, "bias"), (Router, "correction"),
    (Embedding, "tasks"), (FeedForward, "output_bias"), (Mixture, "output_bias"), (Block, "attention_norm"),
    (Block, "attention_post_norm"),
    (Head, "tied"), (Head, "bias"), (Head, "labels"), (Block, "attention"), (Block, "cross"), (Block, "feedforward"),
    (Block, "norm"),
}  # fmt: skip


SCALING = {
    "linear": {"kind", "factor", "magnitude"},
    "dynamic": {"kind", "magnitude"},  # the other fields matter only beyond the stated context
    "llama3": {"kind", "factor", "magnitude", "low_frequency_factor", "high_frequency_factor", "trained_context"},
    "longrope": {"kind", "magnitude", "trained_context", "short", "long"},
    "yarn": {"kind", "factor", "magnitude", "fast", "slow", "whole_pairs", "trained_context"},
}


def idle(part: Any, name: str) -> bool:
    """True if a field has no effect beside the other fields of its part."""
    match part:
        case RotaryScaling(kind=kind, trained_context=trained):
            same = name == "kind" and not trained  # without a context "llama3" divides all frequencies, like "linear"
            return same or name not in SCALING[kind]
        case Norm(kind="rms"):
            return name == "bias"
        case Attention():
            none = part.latent is not None and name in ("keys_as_values", "shared", "relative")
            others = part.shared is not None and name in ("v_norm", "keys_as_values")
            slopes = name in ("alibi_scale", "alibi_most", "alibi_rounded") and not part.alibi
            chunks = name == "chunked" and not part.window
            return none or others or slopes or chunks or (name == "qk_norm_whole" and part.qk_norm is None)
        case DeltaNet():
            return name == "tiled" and part.heads == part.key_heads
        case Mamba(norm=None):
            return name == "norm_first"
        case FeedForward(activation=activation):
            return name in ("limit", "sharpness") and activation != "clamped_silu"
    return False


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every structure inside a spec, with its path."""
    if isinstance(value, Struct):
        yield path, value
        for name in value.__struct_fields__:
            yield from parts(getattr(value, name), (*path, name))
    elif isinstance(value, tuple):
        for index, one in enumerate(value):
            yield from parts(one, (*path, index))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    head, *rest = path
    if isinstance(head, int):
        return (*value[:head], put(value[head], tuple(rest), new), *value[head + 1 :])
    return replace(value, **{head: put(getattr(value, head), tuple(rest), new)})


@pytest.mark.parametrize("name", [*MODELS, *SOURCES])
def test_each_field_of_a_spec_changes_the_plan(name: str) -> None:
    with opened({**MODELS, **SOURCES}[name]) as (checkpoint, model):
        packed = layouts(checkpoint, model)
        vectors = {slot for slot in packed if slot.endswith("norm.weight")}
        packed |= {slot.replace(".weight", ".bias"): packed[slot] for slot in vectors}
        before, seen = pipeline.build_plan(model.spec, packed), 0
        for path, part in parts(model.spec):
            for field in part.__struct_fields__:
                key = (type(part), field)
                if key not in OTHER:
                    assert key in ELSEWHERE or type(part).__name__ in (
                        "ModelSpec",
                        "Learned",
                        "Sinusoidal",
                        "Pooling",
                    ), key
                    continue
                if getattr(part, field) == OTHER[key]:
                    continue
                if idle(part, field):
                    continue
                try:
                    after = pipeline.build_plan(put(model.spec, (*path, field), OTHER[key]), packed)
                except PellucidError:
                    seen += 1
                    continue
                assert after != before, (path, field)
                seen += 1
    assert seen > 10


def test_a_real_configuration_of_each_kind_needs_no_warning(tmp_path: Path) -> None:
    """The published files of SmolLM2, Llama 3.2, Gemma 3 and MiniLM have more keys than the tiny models."""
    published: dict[str, dict[str, Any]] = {
        "llama": {
            "_name_or_path": "x",
            "is_llama_config": True,
            "rope_interleaved": False,
            "pretraining_tp": 1,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "torch_dtype": "bfloat16",
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "unsloth_fixed": True,
            "unsloth_version": "2025.1",
        },
        "gemma3": {"cache_implementation": "hybrid", "rope_scaling": None, "final_logit_softcapping": None},
        "bert": {
            "gradient_checkpointing": False,
            "position_embedding_type": "absolute",
            "torch_dtype": "float32",
            "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
            "hidden_dropout_prob": 0.1,
        },
    }
    for name, more in published.items():
        checkpoint = Metadata.of(TINY[name])
        before = outcome(checkpoint)
        checkpoint.metadata.update(more)
        assert outcome(checkpoint) == before
        assert json.dumps(checkpoint.metadata)
        assert read_model(checkpoint).spec == before[0]
