"""Parts of the readers of encoders that several families share."""

from __future__ import annotations

from typing import Any

from pellucid.model.config import Config
from pellucid.model.output_heads import Heads
from pellucid.model.outputs import OutputActivation
from pellucid.model.read_outputs import read_outputs
from pellucid.model.spec import Attention, ModelSpec, Norm
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint


def head_sizes(config: Config) -> tuple[int, int]:
    """The number of heads H, and the width K of a head."""
    heads = config.divisor("num_attention_heads", "hidden_size")
    return heads, config.count("hidden_size") // heads


def bidirectional(config: Config, **fields: Any) -> Attention:
    """Attention without a causal mask. ``fields`` are further fields of the attention."""
    heads, head_dim = head_sizes(config)
    return Attention(heads, heads, head_dim, head_dim**-0.5, causal=False, **fields)


def encoder_model(
    checkpoint: Checkpoint,
    config: Config,
    body: ModelSpec,
    names: TensorNames,
    heads: Heads,
    activation: OutputActivation,
    norm: Norm | None = None,
) -> Model:
    """The model of a config.json: ``body`` with its outputs, filled by tensors with ``names``.

    ``heads`` have the names that the tensors have in files of a class with a head. ``norm`` is the norm of heads, by
    default the norm of the blocks. Other arguments as in ``read_outputs``.
    """
    width, norm = body.embedding.width, norm or body.blocks[0].norm
    outputs = read_outputs(checkpoint, config, heads, width, norm, activation)
    slots = names.found_in(checkpoint.tensors).slots(body)
    return Model(outputs.of(body), {**slots, **outputs.slots}, config.name("num_hidden_layers"))
