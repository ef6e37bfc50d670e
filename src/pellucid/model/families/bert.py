"""BERT (Devlin et al. 2019), also as a sentence encoder (Reimers and Gurevych 2019).

BERT has post-norms, bidirectional attention, learned positions and type embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead
from pellucid.model.outputs import OutputActivation
from pellucid.model.positions import Learned
from pellucid.model.read_outputs import read_outputs
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
HEADS: Heads = {
    "classify": TaskHead(
        (HeadLayer("bert.pooler.dense", activation="tanh"), HeadLayer("classifier", "labels")), "cls"
    ),
    "tag": TaskHead((HeadLayer("classifier", "labels"),)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (
            HeadLayer("cls.predictions.transform.dense", activation="hidden"),
            HeadLayer("cls.predictions.transform.LayerNorm", "norm"),
        ),
        decoder="cls.predictions.decoder",
        bias="cls.predictions.bias",
    ),
}


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of BertModel."""
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder", False)
    config.refuse("add_cross_attention", False)
    activations: Mapping[str, OutputActivation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
    activation: OutputActivation = config.choice("hidden_act", activations, "gelu")
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
    )
    outputs = read_outputs(checkpoint, config, HEADS, width, norm, activation)
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in checkpoint.tensors else ""
    names = {slot: prefix + name for slot, name in EMBEDDINGS.items()}
    for i in range(layers):
        names.update(
            {f"blocks.{i}.{slot}": f"{prefix}encoder.layer.{i}.{name}" for slot, name in BLOCK.items()}
        )
    slots = {f"{s}.{part}": Slot(f"{n}.{part}") for s, n in names.items() for part in ("weight", "bias")}
    return Model(outputs.of(spec), slots | dict(outputs.slots), config.name("num_hidden_layers"))


BERT = Family(
    "bert",
    safetensors={"bert": from_config},
    # position_ids: 0, 1, 2 ...; a tied decoder equals the embedding
    unused=(
        r"(bert\.)?embeddings\.position_ids",
        r"(bert\.)?pooler\..+",
        r"cls\.predictions\.decoder\..+",
    ),
    skipped=(r"cls\..+",),  # heads of tasks that were not asked for
)
