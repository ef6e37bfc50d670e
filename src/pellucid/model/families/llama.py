"""Llama and its likes (Touvron et al. 2023; Llama Team 2024): pre-RMS-norm, rotary, grouped heads, gated SiLU.

GGUF files have the rows of q and k permuted so that rotary pairs are neighbours; config.json models pair halves.
"""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.names import gguf_slots, transformers_slots
from pellucid.model.readers import gguf_attention, gguf_vocabulary, heads_of, rope_parameters, tied_head
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, Head, Model, ModelSpec, Norm, Rotary
from pellucid.weights.checkpoint import Checkpoint


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``llama.*`` metadata."""
    llama = config.under("llama.")
    attention = gguf_attention(checkpoint, llama, "interleaved")
    norm = Norm("rms", llama.number("attention.layer_norm_rms_epsilon"))
    block = Block(attention, FeedForward(llama.count("feed_forward_length"), "silu", gated=True), norm, "pre")
    spec = ModelSpec(
        family="llama",
        name=config.text("general.name", "llama"),
        context=llama.count("context_length"),
        embedding=Embedding(gguf_vocabulary(checkpoint, llama), llama.count("embedding_length")),
        blocks=(block,) * llama.count("block_count", limit=1000),
        final_norm=norm,
        head=Head(tied="output.weight" not in checkpoint.tensors),
    )
    return Model(spec, gguf_slots(spec))


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of LlamaForCausalLM."""
    config.one_of("hidden_act", {"silu": "silu"}, "silu")
    heads, head_dim = heads_of(config, "num_attention_heads", "head_dim", "hidden_size")
    base, scaling = rope_parameters(config)
    norm = Norm("rms", config.number("rms_norm_eps", 1e-6))
    attention = Attention(
        heads=heads,
        kv_heads=config.divisor("num_key_value_heads", "num_attention_heads", heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rotary=Rotary(base, head_dim, "half", scaling),
    )
    block = Block(attention, FeedForward(config.count("intermediate_size"), "silu", gated=True), norm, "pre")
    spec = ModelSpec(
        family="llama",
        name=checkpoint.path.name,
        context=config.count("max_position_embeddings"),
        embedding=Embedding(config.count("vocab_size"), config.count("hidden_size")),
        blocks=(block,) * config.count("num_hidden_layers", limit=1000),
        final_norm=norm,
        head=Head(tied_head(checkpoint, config, default=False)),
    )
    return Model(spec, transformers_slots(spec))


LLAMA = Family(
    "llama",
    gguf={"llama": from_gguf},
    safetensors={"llama": from_config},
    # The rotary frequencies: read apart in GGUF; in safetensors a copy of what the base says.
    unused=(r"rope_freqs\.weight", r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
