"""One reader for decoders like Llama; the differences between their families are data.

    QWEN2 = LlamaLike("qwen2", bias=True).family()

Each block is attention and a gated feed-forward with pre-norms. Tensors have llama.cpp's names in GGUF and
transformers' names in safetensors. A family that needs more has its own readers, made of the parts in
``common_metadata.py`` (Gemma 3, BERT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pellucid.model.common_metadata import (
    gguf_attention,
    gguf_vocabulary,
    heads_of,
    rope_parameters,
    tied_head,
)
from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.spec import (
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
from pellucid.model.tensor_names import gguf_slots, transformers_slots
from pellucid.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class LlamaLike:
    """The data of a family of decoders.

    ``name`` is the architecture in GGUF and the ``model_type`` in config.json. ``gguf_pairing`` is the order of rotary
    pairs in the rows of GGUF's q and k; models of config.json pair halves. ``bias`` is whether q, k and v have a bias,
    ``qk_norm`` whether each head's queries and keys have an RMS norm, ``tied`` whether the head uses the embedding's
    matrix if config.json does not say. ``unused`` are patterns of tensors that no slot needs.
    """

    name: str
    gguf_pairing: Pairing = "half"
    bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    unused: tuple[str, ...] = ()

    def family(self) -> Family:
        """The family, with readers for both kinds of checkpoint."""
        return Family(
            self.name,
            gguf={self.name: self.from_gguf},
            safetensors={self.name: self.from_config},
            unused=self.unused,
        )

    def from_gguf(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read GGUF metadata."""
        own = config.under(f"{self.name}.")
        norm = Norm("rms", own.number("attention.layer_norm_rms_epsilon"))
        spec = self._spec(
            name=config.text("general.name", self.name),
            context=own.count("context_length"),
            embedding=Embedding(gguf_vocabulary(checkpoint, own), own.count("embedding_length")),
            attention=gguf_attention(checkpoint, own, self.gguf_pairing),
            feedforward=FeedForward(own.count("feed_forward_length"), "silu", gated=True),
            norm=norm,
            layers=own.count("block_count", limit=1000),
            head=Head(tied="output.weight" not in checkpoint.tensors),
        )
        return Model(spec, gguf_slots(spec), own.name("block_count"))

    def from_config(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read ``config.json``."""
        config.one_of("hidden_act", {"silu": "silu"}, "silu")
        heads, head_dim = heads_of(config, "num_attention_heads", "head_dim", "hidden_size")
        base, scaling = rope_parameters(config)
        spec = self._spec(
            name=checkpoint.path.name,
            context=config.count("max_position_embeddings"),
            embedding=Embedding(config.count("vocab_size"), config.count("hidden_size")),
            attention=Attention(
                heads=heads,
                kv_heads=config.divisor("num_key_value_heads", "num_attention_heads", heads),
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rotary=Rotary(base, head_dim, "half", scaling),
            ),
            feedforward=FeedForward(config.count("intermediate_size"), "silu", gated=True),
            norm=Norm("rms", config.number("rms_norm_eps", 1e-6)),
            layers=config.count("num_hidden_layers", limit=1000),
            head=Head(tied_head(checkpoint, config, default=self.tied)),
        )
        return Model(spec, transformers_slots(spec), config.name("num_hidden_layers"))

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
        attention = replace(attention, bias=self.bias, qk_norm=norm if self.qk_norm else None)
        block = Block(attention, feedforward, norm, "pre")
        return ModelSpec(self.name, name, context, embedding, (block,) * layers, final_norm=norm, head=head)
