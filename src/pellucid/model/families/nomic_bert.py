"""Nomic BERT (Nussbaum et al. 2024), and its mixture of experts, Nomic Embed v2 (Nussbaum and Duderstadt 2025).

Nomic BERT has the norms of BERT, rotary positions and a gated feed-forward. In the mixture, every second layer has
experts without gates; their weights are not normalized, and the sum of their outputs has a bias.

Published files have the keys of the model's own code on the hub, transformers has others. The names of tensors are the
same. GGUF files of the mixture lack the bias.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import GGUF_KEYS, gguf_body, gguf_model, gguf_names
from pellucid.model.metadata import rope_parameters, rotary_dims
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, fill_head
from pellucid.model.outputs import HiddenActivation
from pellucid.model.positions import Rotary, RotaryScaling
from pellucid.model.spec import Block, Embedding, FeedForward, Mixture, ModelSpec, Norm, Router
from pellucid.model.standard_encoder import ACTIVATIONS, bidirectional, encoder_model, head_sizes
from pellucid.model.standard_mixture import MAX_EXPERTS, limit_experts
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

BASE = 1000.0
ALIASES: Mapping[str, str] = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
}
"""The keys of the hub. A file of the hub that transformers has saved has both."""
GATED: Mapping[str, HiddenActivation] = {"swiglu": "silu", "geglu": "gelu"}
"""Activation functions whose feed-forward has a gate, in files of the hub."""


def _names(base: str, gated: bool) -> TensorNames:
    return TensorNames(
        {
            "model.embed": f"{base}.embeddings.word_embeddings",
            "model.embed.types": f"{base}.embeddings.token_type_embeddings",
            "model.embed.norm": f"{base}.emb_ln",
            "attention.q,k,v": "attn.Wqkv",
            "attention.output": "attn.out_proj",
            "attention.norm": "norm1",
            "feedforward.gate": "mlp.fc12",
            "feedforward.up": "mlp.fc11" if gated else "mlp.fc1",
            "feedforward.down": "mlp.fc2",
            "feedforward.norm": "norm2",
            "feedforward.router": "mlp.router.layer",
            "feedforward.experts.up.weight": "mlp.experts.mlp.w1",
            "feedforward.experts.down.weight": "mlp.experts.mlp.w2",
            "feedforward.experts_output.bias": "mlp.experts.bias",
        },
        f"{base}.encoder.layers",
    )


def _heads(base: str) -> Heads:
    at, labels = "cls.predictions", HeadLayer("classifier", "labels")
    return {
        "classify": TaskHead((HeadLayer(f"{base}.pooler.dense", activation="tanh"), labels), "cls"),
        "tag": TaskHead((labels,)),
        "fill": fill_head(f"{at}.transform.dense", f"{at}.transform.layer_norm", f"{at}.decoder", f"{at}.bias"),
    }


def _rotary(config: Config, head_dim: int) -> Rotary:
    base, scaling = rope_parameters(config, base_key="rotary_emb_base", default=BASE)
    factor = config.optional_number("rotary_scaling_factor")
    if factor:
        scaling = RotaryScaling("dynamic", factor, trained_context=config.count("max_trained_positions", 2048))
    dims = rotary_dims(config, head_dim, older="rotary_emb_fraction")
    interleaved = config.flag("rotary_emb_interleaved", False)
    return Rotary(base, dims, "interleaved" if interleaved else "half", scaling)


def _check(config: Config) -> None:
    """Refuse the options of the code on the hub that no published model uses."""
    for key in ("prenorm", "parallel_block", "use_rms_norm", "causal", "expert_choice_router", "num_shared_experts"):
        config.refuse(key, False, 0)
    config.refuse("rotary_emb_scale_base")
    # Training and the format of outputs.
    for key in ("dense_seq_output", "fused_bias_fc", "fused_dropout_add_ln", "parallel_block_tied_norm"):
        config.value(key)
    for key in ("use_xentropy", "ffn_div", "max_trained_positions"):
        config.value(key)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of NomicBertModel, of the hub or of transformers."""
    config = config.with_aliases(ALIASES)
    _check(config)
    of_hub = config.has("n_embd")
    width, (_, head_dim) = config.count("hidden_size"), head_sizes(config)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    norm, bias = Norm("layer", config.number("layer_norm_eps", 1e-12)), config.flag("qkv_proj_bias", of_hub)
    activation, gated = config.choice("hidden_act", ACTIVATIONS, "silu"), True
    if of_hub:  # in files of transformers, every feed-forward has a gate
        activation = config.choice("activation_function", {**ACTIVATIONS, **GATED})
        gated = config.text("activation_function") in GATED
        config.value("max_position_embeddings")  # a default of transformers
    dense = FeedForward(
        config.count("intermediate_size"),
        activation,
        gated,
        bias=config.flag("mlp_fc1_bias", of_hub),
        output_bias=config.flag("mlp_fc2_bias", of_hub),
    )
    multiple = config.count("pad_vocab_size_multiple", 1)
    vocabulary = -(-config.count("vocab_size") // multiple) * multiple
    body = ModelSpec(
        "nomic_bert",
        checkpoint.path.name,
        config.count("n_positions" if of_hub else "max_position_embeddings"),
        Embedding(vocabulary, width, types=config.optional_count("type_vocab_size"), norm=norm),
        tuple(
            Block(
                bidirectional(config, rotary=_rotary(config, head_dim), bias=bias, output_bias=bias),
                feedforward,
                norm,
                "post",
            )
            for feedforward in _feedforwards(config, dense, layers)
        ),
    )
    base = "bert" if any(name.startswith("bert.") for name in checkpoint.tensors) else "nomic_bert"
    model = encoder_model(checkpoint, config, body, _names(base, dense.gated), _heads(base), activation)
    return replace(model, slots={**model.slots, **_experts(model)})


def _feedforwards(config: Config, dense: FeedForward, layers: int) -> list[FeedForward | Mixture]:
    period = config.optional_count("moe_every_n_layers")
    if not period:
        return [dense] * layers
    experts = config.count("num_experts", limit=MAX_EXPERTS)
    limit_experts(config, "num_experts", experts, layers)
    normalize = config.flag("moe_normalize_expert_weights", False)
    router = Router(experts, config.count("moe_top_k", limit=experts), normalize=normalize)
    expert = replace(dense, gated=False, bias=False, output_bias=False)
    mixture = Mixture(router, expert, output_bias=True)
    return [mixture if layer % period == 1 else dense for layer in range(layers)]


def _experts(model: Model) -> dict[str, tuple[Slot, ...]]:
    """The experts' matrices: each expert has F rows of w1, and the transpose of F rows of w2."""
    slots = {}
    for layer, block in enumerate(model.spec.blocks):
        if isinstance(block.feedforward, Mixture):
            inner, experts = block.feedforward.expert.width, block.feedforward.router.experts
            parts = [(inner * expert, inner * (expert + 1)) for expert in range(experts)]
            at = f"blocks.{layer}.feedforward.experts"
            (up,), (down,) = model.sources(f"{at}.up.weight"), model.sources(f"{at}.down.weight")
            slots[f"{at}.up.weight"] = tuple(replace(up, rows=rows) for rows in parts)
            slots[f"{at}.down.weight"] = tuple(replace(down, transpose=True, columns=rows) for rows in parts)
    return slots


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture nomic-bert."""
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "nomic_bert", "silu", names)
    return gguf_model(checkpoint, config.with_prefix("nomic-bert."), body, names)


def mixture_from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture nomic-bert-moe."""
    own = config.with_prefix("nomic-bert-moe.")
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "nomic_bert", "gelu", names, gated=False)
    layers, period = len(body.blocks), own.count("moe_every_n_layers")
    experts = own.count("expert_count", limit=MAX_EXPERTS)
    limit_experts(own, "expert_count", experts, layers)
    router = Router(experts, own.count("expert_used_count", limit=experts))
    dense = body.blocks[0].feedforward
    assert isinstance(dense, FeedForward)
    mixture = Mixture(router, replace(dense, bias=False, output_bias=False))
    blocks = tuple(
        replace(block, feedforward=mixture) if layer % period == 1 else block for layer, block in enumerate(body.blocks)
    )
    return gguf_model(checkpoint, own, replace(body, blocks=blocks), names)


NOMIC_BERT = Family(
    "nomic_bert",
    gguf={"nomic-bert": from_gguf, "nomic-bert-moe": mixture_from_gguf},
    safetensors={"nomic_bert": from_config},
    # Frequencies follow from the base; a pooler without a classifier is not run; a tied decoder equals the embedding.
    unused=(
        r".*rotary_emb\.inv_freq",
        r"((nomic_)?bert\.)?pooler\..+",
        r"((nomic_)?bert\.)?embeddings\.position_ids",
        r"cls\.predictions\.decoder\..+",
    ),
    skipped=(r"(cls|classifier)\..+",),
    keys={"experts": "num_experts", "chosen": "moe_top_k"},
    biases=("token_types.weight",),
    gguf_usual={**GGUF_KEYS, "moe_every_n_layers": 2},
)
