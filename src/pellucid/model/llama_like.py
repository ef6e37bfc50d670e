"""One reader for decoders like Llama; the differences between their families are data.

    QWEN2 = LlamaLike("qwen2", bias=True).family()

Each block is attention and a feed-forward with RMS norms. Tensors have llama.cpp's names in GGUF and transformers'
names in safetensors. What data cannot say, a family changes in the finished spec (``gguf_change``, ``config_change``).
A family that differs more has its own readers, made of the parts in ``common_metadata.py`` (Gemma 3, BERT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from pellucid.model.common_metadata import (
    ACTIVATIONS,
    gguf_attention,
    gguf_vocabulary,
    heads_of,
    rope_parameters,
    rotary_dims,
    tied_head,
)
from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.spec import (
    Activation,
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    Model,
    ModelSpec,
    Norm,
    Pairing,
    Rotary,
)
from pellucid.model.tensor_names import GGUF, TRANSFORMERS, TensorNames
from pellucid.weights.checkpoint import Checkpoint

Change: TypeAlias = Callable[[Config, ModelSpec], ModelSpec]
"""(metadata, spec) → the spec with what is peculiar to a family. In GGUF the metadata are those of the architecture."""


@dataclass(frozen=True)
class LlamaLike:
    """The data of a family of decoders.

    ``name`` is the architecture in GGUF and the ``model_type`` in config.json. ``gguf_pairing`` is the order of rotary
    pairs in the rows of GGUF's q and k, ``pairing`` that of config.json's models. ``bias`` and ``output_bias`` are
    whether q, k and v, and the attention's output, have biases where ``attention_bias`` does not say; ``head_norm`` and
    ``whole_norm`` whether each head's queries and keys have an RMS norm, or those of all heads together. ``tied`` is
    whether the head uses the embedding's matrix if config.json does not say. ``activation`` and ``gated`` describe the
    feed-forward, ``placement`` the norms. ``unused`` are patterns of tensors that no slot needs.
    """

    name: str
    gguf_pairing: Pairing = "half"
    pairing: Pairing = "half"
    bias: bool = False
    output_bias: bool = False
    head_norm: bool = False
    whole_norm: bool = False
    tied: bool = False
    activation: Activation = "silu"
    gated: bool = True
    placement: Literal["pre", "sandwich", "output", "parallel", "shared"] = "pre"
    unused: tuple[str, ...] = ()
    gguf_names: TensorNames = GGUF
    names: TensorNames = TRANSFORMERS
    gguf_change: Change = lambda config, spec: spec
    config_change: Change = lambda config, spec: spec

    def family(self) -> Family:
        """The family, with readers for both kinds of checkpoint."""
        return Family(
            self.name,
            gguf={self.name: self.from_gguf},
            safetensors={self.name: self.from_config},
            unused=self.unused,
        )

    def from_gguf(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read GGUF metadata. Whether there are biases is seen from the tensors."""
        own = config.under(f"{self.name}.")
        norm = Norm("rms", own.number("attention.layer_norm_rms_epsilon"))
        attention = gguf_attention(checkpoint, own, self.gguf_pairing)
        bias, output_bias, up_bias = (
            f"blk.0.{name}.bias" in checkpoint.tensors for name in ("attn_q", "attn_output", "ffn_up")
        )
        spec = self._spec(
            name=config.text("general.name", self.name),
            context=own.count("context_length"),
            embedding=Embedding(gguf_vocabulary(checkpoint, own), own.count("embedding_length")),
            attention=replace(attention, bias=bias or self.bias, output_bias=output_bias or self.output_bias),
            feedforward=FeedForward(
                own.count("feed_forward_length"), self.activation, self.gated, bias=up_bias
            ),
            norm=norm,
            layers=own.count("block_count", limit=1000),
            head=Head(tied="output.weight" not in checkpoint.tensors),
        )
        spec = self.gguf_change(own, spec)
        return Model(spec, self.gguf_names.slots(spec), own.name("block_count"))

    def from_config(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read ``config.json``."""
        default = next(name for name, kind in ACTIVATIONS.items() if kind == self.activation)
        activation = config.one_of("hidden_act", ACTIVATIONS, default)
        heads, head_dim = heads_of(config, "num_attention_heads", "head_dim", "hidden_size")
        base, scaling = rope_parameters(config)
        biased = config.flag("attention_bias", False)
        spec = self._spec(
            name=checkpoint.path.name,
            context=config.count("max_position_embeddings"),
            embedding=Embedding(config.count("vocab_size"), config.count("hidden_size")),
            attention=Attention(
                heads=heads,
                kv_heads=config.divisor("num_key_value_heads", "num_attention_heads", heads),
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rotary=Rotary(base, rotary_dims(config, head_dim), self.pairing, scaling),
                bias=biased or self.bias,
                output_bias=biased or self.output_bias,
            ),
            feedforward=FeedForward(
                config.count("intermediate_size"), activation, self.gated, bias=config.flag("mlp_bias", False)
            ),
            norm=Norm("rms", config.number("rms_norm_eps", 1e-6)),
            layers=config.count("num_hidden_layers", limit=1000),
            head=Head(tied_head(checkpoint, config, default=self.tied)),
        )
        spec = self.config_change(config, spec)
        return Model(spec, self.names.slots(spec), config.name("num_hidden_layers"))

    def _spec(
        self,
        name: str,
        context: int,
        embedding: Embedding,
        attention: Attention,
        feedforward: FeedForward,
        norm: Norm,
        layers: int,
        head: Head,
    ) -> ModelSpec:
        qk_norm = norm if self.head_norm or self.whole_norm else None
        attention = replace(attention, qk_norm=qk_norm, qk_norm_whole=self.whole_norm)
        block = Block(attention, feedforward, norm, self.placement)
        return ModelSpec(self.name, name, context, embedding, (block,) * layers, final_norm=norm, head=head)
