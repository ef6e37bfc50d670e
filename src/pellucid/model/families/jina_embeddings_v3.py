"""Jina Embeddings v3 (Sturua et al. 2024): XLM-RoBERTa with rotary positions instead of learned positions.

Published files also have low-rank adapters (LoRA) of five tasks. Pellucid runs the base model without them, as the
model's own code does if no task is given. A warning reports the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.encoder_parts import bidirectional, encoder_model, head_sizes
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import GGUF_KEYS, gguf_body, gguf_model, gguf_names
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead
from pellucid.model.outputs import OutputActivation
from pellucid.model.positions import Rotary
from pellucid.model.rotary_metadata import rope_parameters
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.standard_encoder import ACTIVATIONS
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

BASE, HUB_BASE = 20_000.0, 10_000.0
NAMES = TensorNames(
    {
        "model.embed": "roberta.embeddings.word_embeddings",
        "model.embed.types": "roberta.embeddings.token_type_embeddings",
        "model.embed.norm": "roberta.emb_ln",
        "attention.q,k,v": "mixer.Wqkv",
        "attention.output": "mixer.out_proj",
        "attention.norm": "norm1",
        "feedforward.up": "mlp.fc1",
        "feedforward.down": "mlp.fc2",
        "feedforward.norm": "norm2",
    },
    "roberta.encoder.layers",
)
HEADS: Heads = {
    "classify": TaskHead(
        (HeadLayer("classifier.dense", activation="tanh"), HeadLayer("classifier.out_proj", "labels")), "cls"
    ),
    "tag": TaskHead((HeadLayer("classifier", "labels"),)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (HeadLayer("lm_head.dense", activation="gelu"), HeadLayer("lm_head.layer_norm", "norm")),
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    ),
}
ADAPTERS = r".+\.parametrizations\.weight\.\d+\.lora_[AB]"
ADAPTED = ".parametrizations.weight.original"
"""The name of a matrix that has adapters ends with this, instead of ".weight"."""


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of JinaEmbeddingsV3Model or, of the code on the hub, of XLMRobertaLoRA."""
    config.refuse("position_embedding_type", "rotary")
    config.refuse("use_reg_tokens", False)
    config.refuse("truncate_dim")
    width, (_, head_dim) = config.count("hidden_size"), head_sizes(config)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    of_hub = config.has("position_embedding_type")
    base, scaling = rope_parameters(config, base_key="rotary_emb_base", default=HUB_BASE if of_hub else BASE)
    norm = Norm("layer", config.number("layer_norm_eps", 1e-5))
    activation: OutputActivation = config.choice("hidden_act", ACTIVATIONS, "gelu")
    attention = bidirectional(
        config, rotary=Rotary(base, head_dim, "half", scaling), bias=True, output_bias=True
    )
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=False, bias=True)  # type: ignore[arg-type]
    body = ModelSpec(
        "jina_embeddings_v3",
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        Embedding(
            config.count("vocab_size"), width, types=config.optional_count("type_vocab_size"), norm=norm
        ),
        (Block(attention, feedforward, norm, "post"),) * layers,
    )
    adapted = {name.removesuffix(ADAPTED): name for name in checkpoint.tensors if name.endswith(ADAPTED)}
    names = NAMES if not any(name.startswith("embeddings.") for name in checkpoint.tensors) else BARE
    model = encoder_model(checkpoint, config, body, names, HEADS, activation)
    return replace(model, slots=_originals(model.slots, adapted)) if adapted else model


BARE = replace(
    NAMES,
    names={place: name.removeprefix("roberta.") for place, name in NAMES.names.items()},
    prefix="encoder.layers",
)
"""The names in a file without a head. `TensorNames.found_in` does not find the embedding of a file with adapters."""


def _originals(
    slots: Mapping[str, Slot | tuple[Slot, ...]], adapted: Mapping[str, str]
) -> dict[str, Slot | tuple[Slot, ...]]:
    """The slots, with the names of matrices that have adapters."""

    def original(slot: Slot) -> Slot:
        return replace(slot, tensor=adapted.get(slot.tensor.removesuffix(".weight"), slot.tensor))

    return {
        name: original(slot) if isinstance(slot, Slot) else tuple(map(original, slot))
        for name, slot in slots.items()
    }


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture jina-bert-v3. Adapters are separate files."""
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "jina_embeddings_v3", "gelu", names, gated=False)
    return gguf_model(checkpoint, config.with_prefix("jina-bert-v3."), body, names)


JINA_EMBEDDINGS_V3 = Family(
    "jina_embeddings_v3",
    gguf={"jina-bert-v3": from_gguf},
    safetensors={"jina_embeddings_v3": from_config},
    # A pooler without a classifier is not run; a tied decoder equals the embedding.
    unused=(
        r"(roberta\.)?pooler\..+",
        r"(roberta\.)?embeddings\.(position|token_type)_ids",
        r"lm_head\.decoder\..+",
    ),
    skipped=(r"(lm_head|classifier|qa_outputs)\..+", ADAPTERS),
    biases=(
        "token_types.weight",
        *(f"blk.0.{name}.bias" for name in ("attn_q", "attn_output", "ffn_up", "ffn_down")),
    ),
    gguf_usual=GGUF_KEYS,
)
