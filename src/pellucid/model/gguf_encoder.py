"""Reads GGUF files of encoders: llama.cpp's architectures with the structure of BERT, ModernBERT or Llama.

No key states biases, token types or heads: the presence of their tensors does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.gguf_metadata import gguf_attention, gguf_vocabulary
from pellucid.model.gguf_outputs import OF_BERT, Classifier, gguf_outputs
from pellucid.model.outputs import OutputActivation
from pellucid.model.positions import Pairing
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.tensor_names import GGUF, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

GGUF_KEYS: Mapping[str, int] = {"attention.causal": False, "pooling_type": 1}
"""Keys of a typical file, for random models."""


NAMES = GGUF | {
    "attention.norm": "attn_output_norm",
    "feedforward.norm": "layer_output_norm",
    "model.embed.types": "token_types",
}
"""The names of llama.cpp for encoders with norms after attention and feed-forward."""


def gguf_names(checkpoint: Checkpoint) -> TensorNames:
    """The names in a file, which may store queries, keys and values in one tensor."""
    return NAMES.found_in_gguf(checkpoint.tensors)


def gguf_body(
    checkpoint: Checkpoint,
    config: Config,
    family: str,
    activation: OutputActivation,
    names: TensorNames,
    *,
    placement: Literal["pre", "post"] = "post",
    pairing: Pairing | None = "half",
    gated: bool = True,
    norm_bias: bool = True,
) -> ModelSpec:
    """The spec of an encoder without its outputs. With ``pairing`` None, the attention has no rotary positions.

    The embedding is normalized. With ``placement`` "pre", a norm follows the last block.
    """
    own, present = (
        config.with_prefix(f"{config.text('general.architecture')}."),
        checkpoint.tensors.__contains__,
    )
    own.refuse("attention.causal", False)
    norm = Norm("layer", own.number("attention.layer_norm_epsilon"), bias=norm_bias)
    types = config.count("tokenizer.ggml.token_type_count", 2) if present("token_types.weight") else 0
    attention = replace(
        gguf_attention(checkpoint, own, pairing),
        causal=False,
        bias=present(f"blk.0.{names.names['attention.q']}.bias"),
        output_bias=present("blk.0.attn_output.bias"),
    )
    feedforward = FeedForward(
        own.count("feed_forward_length"),
        activation,  # type: ignore[arg-type]
        gated,
        bias=present("blk.0.ffn_up.bias"),
        output_bias=present("blk.0.ffn_down.bias"),
    )
    layers = own.count("block_count", limit=MAX_LAYERS)
    return ModelSpec(
        family,
        config.text("general.name", family),
        own.count("context_length"),
        Embedding(gguf_vocabulary(checkpoint, own), own.count("embedding_length"), types=types, norm=norm),
        (Block(attention, feedforward, norm, placement),) * layers,
        final_norm=norm if placement == "pre" else None,
    )


def gguf_model(
    checkpoint: Checkpoint,
    config: Config,
    body: ModelSpec,
    names: TensorNames,
    classifier: Classifier = OF_BERT,
) -> Model:
    """The model of a file: ``body`` with its outputs. ``config`` reads keys with the architecture as prefix."""
    outputs = gguf_outputs(checkpoint, config, classifier)
    slots = {**names.slots(body), **outputs.slots}
    return Model(outputs.of(body), slots, config.name("block_count"))
