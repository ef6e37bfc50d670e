"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): parallel attention and feed-forward."""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {
        "model.embed": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
        "model.project": "embed_out",
        "attention.q,k,v": "attention.query_key_value",
        "attention.output": "attention.dense",
        "attention.norm": "input_layernorm",
        "feedforward.up": "mlp.dense_h_to_4h",
        "feedforward.down": "mlp.dense_4h_to_h",
        "feedforward.norm": "post_attention_layernorm",
    },
    "gpt_neox.layers",
    by_group=frozenset({"attention.query_key_value"}),
)


def _parallel(config: Config, spec: ModelSpec) -> ModelSpec:
    parallel = config.flag("use_parallel_residual", True)
    return spec.with_blocks(placement="parallel" if parallel else "pre")


GPT_NEOX = StandardDecoder(
    "gpt_neox",
    architecture="gptneox",
    rotated=0.25,
    bias=True,
    output_bias=True,
    activation="gelu",
    gated=False,
    feedforward_bias=True,
    norm=Norm("layer", 1e-5),
    keys={"kv_heads": "", "head_dim": "", "norm_eps": "layer_norm_eps", "feedforward_bias": ""},
    unused=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    names=NAMES,
    rope_keys=("rotary_emb_base", "rotary_pct"),
    gguf_change=_parallel,
    config_change=_parallel,
).family()
