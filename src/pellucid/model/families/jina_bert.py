"""Jina BERT (Günther et al. 2023, Jina Embeddings 2): BERT with ALiBi to both sides and a gated feed-forward.

Its config.json states the architecture "bert" with ``position_embedding_type`` "alibi", because its code is on the hub.
The code model (jina-embeddings-v2-base-code) also has query and key norms, and a second norm after attention.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.encoder_parts import bidirectional, encoder_model
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import GGUF_KEYS, gguf_body, gguf_model, gguf_names
from pellucid.model.output_heads import Heads
from pellucid.model.outputs import OutputActivation
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

NAMES = TensorNames(
    {
        "model.embed": "bert.embeddings.word_embeddings",
        "model.embed.types": "bert.embeddings.token_type_embeddings",
        "model.embed.norm": "bert.embeddings.LayerNorm",
        "attention.q": "attention.self.query",
        "attention.k": "attention.self.key",
        "attention.v": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention.norm": "attention.output.LayerNorm",
        "feedforward.gate,up": "mlp.gated_layers",
        "feedforward.down": "mlp.wo",
        "feedforward.norm": "mlp.layernorm",
    },
    "bert.encoder.layer",
)
CODE_NAMES = replace(
    NAMES
    | {
        "attention.q_norm": "attention.self.layer_norm_q",
        "attention.k_norm": "attention.self.layer_norm_k",
        "attention.post_norm": "attention.output.LayerNorm",
        "attention.norm": "layer_norm_1",
        "feedforward.gate,up": "mlp.up_gated_layer",
        "feedforward.down": "mlp.down_layer",
        "feedforward.norm": "layer_norm_2",
    },
    up_first=True,
)
"""The names of the code model, whose up-projection precedes the gate."""


def _code_model(spec: ModelSpec) -> ModelSpec:
    norm = spec.blocks[0].norm
    return spec.with_attention(qk_norm=norm, qk_norm_whole=True).with_blocks(attention_post_norm=True)


HIDDEN: Mapping[str, OutputActivation] = {"gelu": "gelu", "relu": "relu"}
"""Activation functions of feed-forwards without a gate, and of heads."""


def from_config(checkpoint: Checkpoint, config: Config, heads: Heads) -> Model:
    """Read ``config.json`` of JinaBertModel. ``heads`` are the heads of BERT."""
    for key in ("is_decoder", "add_cross_attention"):
        config.refuse(key, False)
    config.refuse("position_embedding_type", "alibi")
    config.refuse("emb_pooler", "mean")
    activations: dict[str, OutputActivation] = {"geglu": "gelu", "reglu": "relu"}
    activation = config.choice("feed_forward_type", activations, "geglu")
    hidden: OutputActivation = config.choice("hidden_act", HIDDEN, "gelu")
    norm = Norm("layer", config.number("layer_norm_eps", 1e-12))
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    feedforward = FeedForward(
        config.count("intermediate_size"),
        activation,  # type: ignore[arg-type]
        gated=True,
        output_bias=True,
    )
    attention = bidirectional(config, alibi=True, bias=True, output_bias=True)
    body = ModelSpec(
        "jina_bert",
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        Embedding(
            config.count("vocab_size"),
            config.count("hidden_size"),
            types=config.count("type_vocab_size", 2),
            norm=norm,
        ),
        (Block(attention, feedforward, norm, "post"),) * layers,
    )
    names = NAMES
    if any(name.endswith("layer.0.layer_norm_1.weight") for name in checkpoint.tensors):
        body, names = _code_model(body), CODE_NAMES
    return encoder_model(checkpoint, config, body, names, heads, hidden)


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture jina-bert-v2. Older files have separate gates."""
    own = config.with_prefix("jina-bert-v2.")
    own.refuse("attention.max_alibi_bias", 8)
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "jina_bert", "gelu", names, pairing=None).with_attention(alibi=True)
    if "blk.0.ffn_gate.weight" not in checkpoint.tensors:
        names |= {"feedforward.gate,up": "ffn_up"}
    if "blk.0.attn_norm_2.weight" in checkpoint.tensors:
        more = {"attention.post_norm": "attn_output_norm", "attention.norm": "attn_norm_2"}
        body, names = _code_model(body), replace(names | more, up_first=True)
    return gguf_model(checkpoint, own, body, names)


JINA_BERT = Family(
    "jina_bert",
    gguf={"jina-bert-v2": from_gguf},
    biases=(
        "token_types.weight",
        *(f"blk.0.{name}.bias" for name in ("attn_q", "attn_output", "ffn_down")),
    ),
    gguf_usual=GGUF_KEYS,
)
