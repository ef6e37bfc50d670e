"""T5 (Raffel et al. 2020), Flan-T5, mT5 and UMT5: relative buckets, RMS norms before each part, no biases.

UMT5 has a table of buckets in every block; the other models have one table for all blocks of a side.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.encoder_decoder import first_tokens
from pellucid.model.family import Family
from pellucid.model.positions import RelativeBuckets
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, Head, ModelSpec, Norm
from pellucid.model.standard_decoder import ACTIVATIONS
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

CONTEXT = 512
"""The length of the texts in training. Relative buckets have no longest text."""


def _names(side: str) -> TensorNames:
    """The tensor names of the "encoder" or "decoder"."""
    attention, last = "layer.0.SelfAttention", 1 if side == "encoder" else 2
    names = {
        "model.embed": "shared",
        "model.norm": f"{side}.final_layer_norm",
        "model.project": "lm_head",
        "model.relative": f"{side}.block.0.{attention}.relative_attention_bias",
        "attention.relative": f"{attention}.relative_attention_bias",
        "attention.norm": "layer.0.layer_norm",
        "attention.output": f"{attention}.o",
        "feedforward.up": f"layer.{last}.DenseReluDense.wi",
        "feedforward.down": f"layer.{last}.DenseReluDense.wo",
        "feedforward.norm": f"layer.{last}.layer_norm",
        **{f"attention.{part}": f"{attention}.{part}" for part in "qkv"},
    }
    if side == "decoder":
        names |= {f"cross.{part}": f"layer.1.EncDecAttention.{part}" for part in "qkv"}
        names |= {"cross.output": "layer.1.EncDecAttention.o", "cross.norm": "layer.1.layer_norm"}
    return TensorNames(names, f"{side}.block")


def _gated(names: TensorNames) -> TensorNames:
    up = names.names["feedforward.up"]
    return names | {"feedforward.gate": f"{up}_0", "feedforward.up": f"{up}_1"}


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of T5, mT5 and UMT5."""
    config = config.with_aliases({"d_model": "hidden_size", "num_heads": "num_attention_heads"})
    config.flag("is_encoder_decoder", True)
    for derived in ("dense_act_fn", "is_gated_act", "num_hidden_layers", "head_dim"):
        config.value(derived)
    own = config.text("model_type") == "umt5"
    usual = "relu" if config.text("model_type") == "t5" else "gated-gelu"
    choices = {name: (False, kind) for name, kind in ACTIVATIONS.items()}
    choices |= {f"gated-{name}": (True, kind) for name, kind in ACTIVATIONS.items()}
    choices["gated-gelu"] = (True, "gelu_tanh")
    gated, activation = config.choice("feed_forward_proj", choices, usual)
    heads, head_dim = config.count("num_heads"), config.count("d_kv")
    buckets = RelativeBuckets(
        config.count("relative_attention_num_buckets", 32),
        config.count("relative_attention_max_distance", 128),
        own=own,
    )
    cross = Attention(heads, heads, head_dim, 1.0, causal=False)
    attention = replace(cross, relative=buckets)
    norm = Norm("rms", config.number("layer_norm_epsilon", 1e-6))
    feedforward = FeedForward(config.count("d_ff"), activation, gated)
    layers = config.count("num_layers", limit=MAX_LAYERS)
    decoder_layers = config.count("num_decoder_layers", layers, limit=MAX_LAYERS)
    vocabulary, width = config.count("vocab_size"), config.count("d_model")
    encoder = ModelSpec(
        family="t5",
        name=checkpoint.path.name,
        context=config.count("n_positions", CONTEXT),
        embedding=Embedding(vocabulary, width),
        blocks=(Block(attention, feedforward, norm, "pre"),) * layers,
        final_norm=norm,
    )
    # The first T5 divides the logits by the root of D. Its successors have a head of their own, and do not.
    stated = config.flag("scale_decoder_outputs", config.flag("tie_word_embeddings", True))
    scaled = stated and config.text("model_type") != "mt5"
    head = Head("lm_head.weight" not in checkpoint.tensors, scale=width**-0.5 if scaled else 1.0)
    decoder = Block(replace(attention, causal=True), feedforward, norm, "pre", cross=cross)
    spec = replace(
        encoder,
        blocks=(decoder,) * decoder_layers,
        head=head,
        encoder=encoder,
        start=first_tokens(checkpoint, config, vocabulary, default=0),
    )
    names = replace(_names("decoder"), encoder=_names("encoder"))
    if gated:
        names = replace(_gated(_names("decoder")), encoder=_gated(_names("encoder")))
    return Model(spec, names.slots(spec), config.name("num_decoder_layers"))


T5 = Family(
    "t5",
    safetensors=dict.fromkeys(("t5", "mt5", "umt5"), from_config),
    unused=(
        r"(en|de)coder\.embed_tokens\.weight",  # copies of the shared embedding
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # cross attention has none
    ),
    keys={
        "width": "d_model",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "feed_forward": "d_ff",
        "layers": "num_layers",
    },
)
