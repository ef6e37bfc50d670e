"""BERT (Devlin et al. 2019) as a sentence encoder (Reimers and Gurevych 2019).

BERT has post-norms, bidirectional attention, learned positions, type embeddings and mean pooling.
"""

from __future__ import annotations

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.positions import Learned
from pellucid.model.sentence_pooling import sentence_pooling
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

BLOCK = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feedforward.up": "intermediate.dense",
    "feedforward.down": "output.dense",
    "feedforward.norm": "output.LayerNorm",
}
EMBEDDINGS = {
    "embed": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "embed.types": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
}


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of BertModel."""
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder", False)
    config.refuse("add_cross_attention", False)
    activations = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
    activation = config.choice("hidden_act", activations, "gelu")
    width, heads = config.count("hidden_size"), config.divisor("num_attention_heads", "hidden_size")
    norm, head_dim = Norm("layer", config.number("layer_norm_eps", 1e-12)), width // heads
    positions = config.count("max_position_embeddings")
    attention = Attention(heads, heads, head_dim, head_dim**-0.5, causal=False, bias=True, output_bias=True)
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=False, bias=True)  # type: ignore[arg-type]
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    spec = ModelSpec(
        family="bert",
        name=checkpoint.path.name,
        context=positions,
        embedding=Embedding(
            config.count("vocab_size"), width, types=config.count("type_vocab_size", 2), norm=norm
        ),
        position=Learned(positions),
        blocks=(Block(attention, feedforward, norm, "post"),) * layers,
        pooling=sentence_pooling(checkpoint, config, width),
    )
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in checkpoint.tensors else ""
    names = {slot: prefix + name for slot, name in EMBEDDINGS.items()}
    for i in range(layers):
        names.update(
            {f"blocks.{i}.{slot}": f"{prefix}encoder.layer.{i}.{name}" for slot, name in BLOCK.items()}
        )
    slots = {f"{s}.{part}": Slot(f"{n}.{part}") for s, n in names.items() for part in ("weight", "bias")}
    return Model(spec, slots, config.name("num_hidden_layers"))


BERT = Family(
    "bert",
    safetensors={"bert": from_config},
    unused=(r"(bert\.)?embeddings\.position_ids", r"(bert\.)?pooler\..+"),  # position_ids: 0, 1, 2 ...
    skipped=(r"cls\..+",),  # the heads of pre-training
)
