"""ModernBERT (Warner et al. 2024), mmBERT, Granite Embedding R2; EuroBERT (Boizard et al. 2025).

ModernBERT has norms before attention and feed-forward, rotary positions and a gated feed-forward. Every third layer
attends to the whole text, the other layers to a window. The two kinds of layers have different rotary bases.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.decision_heads import LAYA, has_decision_blocks, with_decision, without_decision
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import GGUF_KEYS, Classifier, gguf_body, gguf_model, gguf_outputs
from pellucid.model.metadata import rope_parameters, slide, sliding_layers
from pellucid.model.output_heads import HeadLayer, Heads, OutputParts, TaskHead
from pellucid.model.outputs import PoolingKind
from pellucid.model.positions import Rotary
from pellucid.model.sentence_modules import read_outputs
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_encoder import ACTIVATIONS, bidirectional, encoder_model, head_sizes
from pellucid.model.tensor_names import GGUF, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

BASE, LOCAL_BASE, PERIOD = 160_000.0, 10_000.0, 3
NAMES = TensorNames(
    {
        "model.embed": "model.embeddings.tok_embeddings",
        "model.embed.norm": "model.embeddings.norm",
        "model.norm": "model.final_norm",
        "attention.q,k,v": "attn.Wqkv",
        "attention.output": "attn.Wo",
        "attention.norm": "attn_norm",
        "feedforward.gate,up": "mlp.Wi",
        "feedforward.down": "mlp.Wo",
        "feedforward.norm": "mlp_norm",
    },
    "model.layers",
)
GGUF_NAMES = GGUF | {"attention.q,k,v": "attn_qkv", "feedforward.gate,up": "ffn_up"}


def _windowed(spec: ModelSpec, sliding: list[bool], reach: int, base: float) -> ModelSpec:
    """The spec with windows: in sliding layers a token attends to ``reach`` tokens on each side."""
    rotary = spec.attention.rotary
    assert rotary
    blocks = (replace(spec.blocks[0], attention_norm=False), *spec.blocks[1:])
    # Rotary scaling applies to layers without a window.
    rotary = Rotary(base, rotary.dims, rotary.pairing)
    return slide(replace(spec, blocks=blocks), sliding, reach + 1, rotary=rotary)


def _heads(config: Config) -> Heads:
    pools: dict[str, PoolingKind] = {"cls": "cls", "mean": "mean"}
    pooling = config.choice("classifier_pooling", pools, "cls")
    activation = config.choice("classifier_activation", ACTIVATIONS, "gelu")
    dense = HeadLayer("head.dense", activation=activation, bias=config.flag("classifier_bias", False))
    layers, labels = (dense, HeadLayer("head.norm", "norm")), HeadLayer("classifier", "labels")
    bias = "decoder.bias" if config.flag("decoder_bias", True) else ""
    return {
        "classify": TaskHead((*layers, labels), pooling),
        "tag": TaskHead((*layers, labels)),
        "answer": TaskHead((*layers, labels)),
        "fill": TaskHead(layers, decoder="decoder", bias=bias),
    }


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of ModernBertModel."""
    # Published files state the positions of the configuration class that they extend, or "sans_pos" (mmBERT).
    config.refuse("position_embedding_type", "absolute", "sans_pos")
    config.refuse("rope_scaling", {})
    width, (_, head_dim) = config.count("hidden_size"), head_sizes(config)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    norm = Norm("layer", config.number("norm_eps", 1e-5), bias=config.flag("norm_bias", False))
    base, scaling = rope_parameters(config, "full_attention", "global_rope_theta", BASE)
    local_base, _ = rope_parameters(config, "sliding_attention", "local_rope_theta", LOCAL_BASE)
    bias = config.flag("attention_bias", False)
    attention = bidirectional(config, rotary=Rotary(base, head_dim, "half", scaling), bias=bias, output_bias=bias)
    activation = config.choice("hidden_activation", ACTIVATIONS, "gelu")
    inner = config.count("intermediate_size")
    feedforward = FeedForward(inner, activation, gated=True, bias=config.flag("mlp_bias", False))
    body = ModelSpec(
        "modernbert",
        checkpoint.path.name,
        config.count("max_position_embeddings", 8192),
        Embedding(config.count("vocab_size"), width, norm=norm),
        (Block(attention, feedforward, norm, "pre"),) * layers,
        final_norm=norm,
    )
    period = config.count("global_attn_every_n_layers", PERIOD)
    sliding = sliding_layers(config, [layer % period != 0 for layer in range(layers)])
    body = _windowed(body, sliding, config.count("local_attention", 128) // 2, local_base)
    return encoder_model(checkpoint, config, body, NAMES, _heads(config), activation)


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture modern-bert, also with decision blocks."""
    own = config.with_prefix("modern-bert.")
    widths = list[int]()
    if decides := has_decision_blocks(own, LAYA):
        own, widths = without_decision(own)
    activation = own.choice("hidden_activation", ACTIVATIONS, "gelu")
    body = gguf_body(
        checkpoint, own.with_prefix(""), "modernbert", activation, GGUF_NAMES, placement="pre", norm_bias=False
    )
    window, layers = own.optional_count("attention.sliding_window"), len(body.blocks)
    if own.is_list("attention.sliding_window_pattern"):
        sliding = own.flags("attention.sliding_window_pattern", layers) or []
    else:
        period = own.count("attention.sliding_window_pattern", PERIOD)
        sliding = [layer % period != 0 for layer in range(layers)]
    rotary = body.attention.rotary
    assert rotary
    local_base = own.number("rope.freq_base_swa", rotary.base, low=1.0)
    body = _windowed(body, sliding if window else [False] * layers, window // 2, local_base)
    if decides:
        norm = replace(body.blocks[0].norm, bias=True)
        return with_decision(own, body, norm, GGUF_NAMES, "output_norm", widths)
    return gguf_model(checkpoint, own, body, GGUF_NAMES, Classifier("gelu", body.blocks[0].norm, "mean"))


MODERNBERT = Family(
    "modernbert",
    gguf={"modern-bert": from_gguf},
    safetensors={"modernbert": from_config},
    unused=(r"decoder\.weight",),  # a tied decoder equals the embedding
    skipped=(r"(head|decoder|classifier)\..+",),  # heads of tasks that were not asked for
    gguf_usual=GGUF_KEYS,
)


# EuroBERT: the blocks of Llama with attention to both sides. Its classifier may pool scores.

EURO_BLOCKS = StandardDecoder("eurobert", norm=Norm("rms", 1e-5), aliases={"classifier_pooling": "clf_pooling"})


def _euro_heads(config: Config, bias: bool) -> Heads:
    """The heads. ``bias``: the projection to the vocabulary has a bias if the feed-forwards have biases."""
    pools: dict[str, PoolingKind] = {"bos": "cls", "mean": "mean", "late": "mean"}
    pooling, late = config.choice("classifier_pooling", pools, "late"), True
    late = config.text("classifier_pooling", "late") == "late"
    labels = HeadLayer("classifier", "labels")
    return {
        "classify": TaskHead((HeadLayer("dense", activation="gelu"), labels), pooling, late),
        "tag": TaskHead((labels,)),
        "fill": TaskHead(decoder="lm_head", bias="lm_head.bias" if bias else ""),
    }


def _euro_model(model: Model, outputs: OutputParts) -> Model:
    body = {name: slot for name, slot in model.slots.items() if not name.startswith("project.")}
    spec = outputs.of(model.spec.with_attention(causal=False))
    return replace(model, spec=spec, slots={**body, **outputs.slots})


def euro_from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of EuroBertModel."""
    config.refuse("is_decoder", False)
    model = EURO_BLOCKS.from_config(checkpoint, config)
    own = config.with_aliases(EURO_BLOCKS.aliases)
    heads = _euro_heads(own, config.flag("mlp_bias", False))
    width, norm = model.spec.embedding.width, model.spec.blocks[0].norm
    return _euro_model(model, read_outputs(checkpoint, own, heads, width, norm, "silu"))


def euro_from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture eurobert."""
    own = config.with_prefix("eurobert.")
    own.refuse("attention.causal", False)
    model = EURO_BLOCKS.from_gguf(checkpoint, config)
    return _euro_model(model, gguf_outputs(checkpoint, own))


EUROBERT = Family(
    "eurobert",
    gguf={"eurobert": euro_from_gguf},
    safetensors={"eurobert": euro_from_config},
    unused=(r"model\.rotary_emb\.inv_freq",),  # follows from the base
    skipped=(r"(lm_head|dense|classifier)\..+",),  # heads of tasks that were not asked for
    gguf_usual={"attention.causal": False, "pooling_type": 1},
)
