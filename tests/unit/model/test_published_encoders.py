"""The keys of published encoders are read without warnings, and options that no published model has are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import model_runner, opened

from pellucid.errors import PellucidError
from pellucid.model.outputs import Pooling
from pellucid.model.spec import FeedForward, Mixture
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.testing import random_model

MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 2,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "initializer_cutoff_factor": 2.0,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "position_embedding_type": "absolute",
    "reference_compile": True,
    "repad_logits_with_grad": False,
    "sep_token_id": 2,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "num_hidden_layers": 6,
}
NOMIC = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "causal": False,
    "dense_seq_output": True,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": 96,
    "n_layer": 2,
    "n_positions": 256,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_type": "cls_index",
    "type_vocab_size": 2,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
}
MIXTURE = NOMIC | {
    "activation_function": "gelu",
    "expert_choice_router": False,
    "ffn_div": 1,
    "layer_norm_epsilon": 1e-05,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "moe_every_n_layers": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "moe_resid_pdrop": 0.0,
    "moe_top_k": 2,
    "num_experts": 8,
    "num_shared_experts": 0,
    "qkv_proj_bias": True,
    "rotary_emb_base": 10000.0,
    "router_aux_loss_coef": 0.1,
    "type_vocab_size": 1,
}
JINA_V2 = {
    "architectures": ["JinaBertModel"],
    "attn_implementation": "torch",
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "model_max_length": 8192,
    "position_embedding_type": "alibi",
    "type_vocab_size": 2,
}
NEW = {
    "architectures": ["NewModel", "NewForTokenClassification"],
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20000,
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
EUROBERT = {
    "architectures": ["EuroBertModel"],
    "attention_bias": False,
    "bos_token": "<|begin_of_text|>",
    "clf_pooling": "late",
    "eos_token": "<|end_of_text|>",
    "hidden_dropout": 0.0,
    "mask_token": "<|mask|>",
    "mask_token_id": 5,
    "mlp_bias": False,
    "pad_token": "<|end_of_text|>",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": 250000,
}
PUBLISHED = {
    "modernbert": ("modernbert", MODERNBERT),
    "nomic-embed-text-v1.5": ("nomic_bert", NOMIC),
    "nomic-embed-text-v2-moe": ("nomic_bert", MIXTURE),
    "jina-embeddings-v2-base-en": ("bert", JINA_V2),
    "gte-multilingual-base": ("new", NEW),
    "snowflake-arctic-embed-m-v2.0": ("gte", NEW | {"architectures": ["GteModel"], "rope_scaling": None}),
    "EuroBERT-210m": ("eurobert", EUROBERT),
}


def published(name: str, folder: Path, **changes: Any) -> Path:
    """A random model with the keys of a published config.json."""
    family, keys = PUBLISHED[name]
    path = random_model(family, folder, kind="safetensors", metadata=keys | changes)
    stated = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**stated, **keys, **changes}))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_files_are_known_and_the_model_runs(name: str, tmp_path: Path) -> None:
    path = published(name, tmp_path / "m")
    with model_runner(path) as runner:
        found = runner.forward([Chunk(BlockTable(), list(range(30)), 30)])
    assert np.isfinite(found).all()
    assert found.std() > 0.01


def test_layers_of_modernbert(tmp_path: Path) -> None:
    with opened(published("modernbert", tmp_path / "m")) as (_, model):
        windows = [kind.window for kind in model.spec.attentions]
        bases = [kind.rotary.base for kind in model.spec.attentions if kind.rotary]
    assert windows == [0, 65, 65, 0, 65, 65]
    assert bases == [160_000.0, 10_000.0, 10_000.0] * 2


def test_every_second_layer_of_nomic_v2_has_experts(tmp_path: Path) -> None:
    path = published("nomic-embed-text-v2-moe", tmp_path / "m", n_layer=5, num_hidden_layers=5)
    with opened(path) as (_, model):
        kinds = [type(block.feedforward) for block in model.spec.blocks]
        router = model.spec.blocks[1].feedforward.router  # type: ignore[union-attr]
    assert kinds == [FeedForward, Mixture, FeedForward, Mixture, FeedForward]
    assert (router.chosen, router.normalize, router.score) == (2, False, "softmax")


def test_vocabulary_of_nomic_is_padded(tmp_path: Path) -> None:
    path = random_model("nomic_bert", tmp_path / "m", kind="safetensors", vocabulary=300, metadata=dict(NOMIC))
    with opened(path) as (_, model):
        assert model.spec.embedding.vocabulary == 320


def test_keys_of_the_hub_win_over_the_defaults_of_transformers(tmp_path: Path) -> None:
    """transformers saves the hub's keys as it read them, beside its own keys."""
    own = {"hidden_act": "silu", "max_position_embeddings": 2048, "hidden_size": 64}
    keys = NOMIC | {"activation_function": "geglu", "n_positions": 128}
    path = random_model("nomic_bert", tmp_path / "m", kind="safetensors", metadata=keys)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | own))
    with opened(path) as (_, model):
        dense = model.spec.blocks[0].feedforward
        assert isinstance(dense, FeedForward)
        assert (dense.activation, dense.gated, model.spec.context) == ("gelu", True, 128)


@pytest.mark.parametrize(("stated", "pooling"), [("late", Pooling("mean", late=True)), ("bos", Pooling("cls"))])
def test_older_key_of_the_pooling_of_eurobert(stated: str, pooling: Pooling, tmp_path: Path) -> None:
    classes = {"architectures": ["EuroBertForSequenceClassification"], "num_labels": 2}
    with opened(published("EuroBERT-210m", tmp_path / "m", clf_pooling=stated, **classes)) as (_, model):
        assert model.spec.pooling == pooling


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("nomic-embed-text-v1.5", {"prenorm": True}, "prenorm = True is not supported"),
    ("nomic-embed-text-v1.5", {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base = 512 is not supported"),
    ("nomic-embed-text-v2-moe", {"num_shared_experts": 1}, "num_shared_experts = 1 is not supported"),
    ("jina-embeddings-v2-base-en", {"feed_forward_type": "original"}, "feed_forward_type is 'original'"),
    ("jina-embeddings-v2-base-en", {"emb_pooler": "max"}, "emb_pooler = 'max' is not supported"),
    ("gte-multilingual-base", {"logn_attention_scale": True}, "logn_attention_scale = True is not supported"),
    ("gte-multilingual-base", {"position_embedding_type": "absolute"}, "position_embedding_type = 'absolute'"),
    ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = {"),
    ("EuroBERT-210m", {"is_decoder": True}, "is_decoder = True is not supported"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_options_that_no_published_model_uses_are_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = published(name, tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(PellucidError) as caught, opened(path):
        pass
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
