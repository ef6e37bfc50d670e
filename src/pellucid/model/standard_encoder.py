"""One reader for encoders with the structure of BERT. The differences between their families are data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import gguf_outputs
from pellucid.model.metadata import gguf_attention, gguf_vocabulary
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead
from pellucid.model.outputs import HiddenActivation, OutputActivation
from pellucid.model.positions import Learned
from pellucid.model.sentence_modules import read_outputs
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, ModelSpec, Norm, Placement
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

# Parts of the readers of encoders that several families share.


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


# The reader of ``StandardEncoder``.
#
#     BERT = StandardEncoder("bert", names=bert_names("bert"), heads=HEADS).family()
#
# The defaults are the values of BERT: attention to both sides and a feed-forward without gate, each with biases and a
# norm after it, and learned positions. The vectors of token, position and type are added and normalized.

Slots: TypeAlias = Mapping[str, Slot | tuple[Slot, ...]]

ACTIVATIONS: Mapping[str, HiddenActivation] = {
    "gelu": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh"),
    "relu": "relu",
    **dict.fromkeys(("silu", "swish"), "silu"),
}
"""Activation functions by their names in transformers."""

KEYS: Mapping[str, str] = {
    "context": "max_position_embeddings",
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "layers": "num_hidden_layers",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "types": "type_vocab_size",
    "narrow": "",
}
"""The keys of config.json by meaning."""


def bert_names(base: str, layers: str = "encoder.layer") -> TensorNames:
    """The names of BERT's tensors. ``base`` is their first part, ``layers`` the name of the list of layers."""
    return TensorNames(
        {
            "model.embed": f"{base}.embeddings.word_embeddings",
            "model.embed.types": f"{base}.embeddings.token_type_embeddings",
            "model.embed.norm": f"{base}.embeddings.LayerNorm",
            "model.position": f"{base}.embeddings.position_embeddings",
            "attention.q": "attention.self.query",
            "attention.k": "attention.self.key",
            "attention.v": "attention.self.value",
            "attention.output": "attention.output.dense",
            "attention.norm": "attention.output.LayerNorm",
            "feedforward.up": "intermediate.dense",
            "feedforward.down": "output.dense",
            "feedforward.norm": "output.LayerNorm",
        },
        f"{base}.{layers}",
    )


def after_padding(config: Config) -> int:
    """The first row of fairseq's position tables: the rows up to the id of the padding token have no position."""
    return config.optional_count("pad_token_id") + 1 if config.has("pad_token_id") else 2


class StandardEncoder(Struct, frozen=True):
    """The data of a family of encoders.

    Names: ``name`` is the name of the family, ``model_type`` its name in config.json if it differs. ``also`` lists
    further names in config.json. ``names`` are the names of the tensors; their first part may be missing in files
    without a head. ``narrow_layers`` lists the layers of ``heads`` that have the width of the embedding. ``gguf_names``
    are the names in GGUF (None: no GGUF architecture).

    Embedding: ``first_position`` is the row of the position table for the first token. ``widened``: the embedding is
    projected to the width of the model even if it is not narrower. ``embedding_norm``: the sum of a token's vectors is
    normalized.

    Blocks: for ``placement`` see ``Block``. ``final_norm``: a norm follows the last block. ``layer_names`` lists the
    names of each layer's tensors, if several layers share tensors.

    Defaults, where config.json does not state a value: ``activation`` is the name of the activation function, ``types``
    the number of token types, ``epsilon`` the epsilon of norms.

    ``keys`` replaces keys of ``KEYS``; "" means that config.json has no such key. ``change`` makes the changes that
    data cannot express: (metadata, spec) → spec. For ``unused`` see ``Family``; the tensors of poolers and of ``heads``
    need no pattern.
    """

    name: str
    names: TensorNames
    heads: Heads
    narrow_layers: tuple[str, ...] = ()
    model_type: str = ""
    also: tuple[str, ...] = ()
    gguf_names: TensorNames | None = None
    first_position: Callable[[Config], int] = lambda config: 0
    widened: bool = False
    embedding_norm: bool = True
    placement: Placement = "post"
    final_norm: bool = False
    layer_names: Callable[[Config, int], list[str]] | None = None
    activation: str = "gelu"
    types: int = 2
    epsilon: float = 1e-12
    keys: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[Config, ModelSpec], ModelSpec] = lambda config, spec: spec
    unused: tuple[str, ...] = ()

    def family(self) -> Family:
        """The `Family` with the readers."""
        base = re.escape(self.names.prefix.partition(".")[0])
        unused = [
            rf"({base}\.)?embeddings\.(position|token_type)_ids",  # 0, 1, 2 ..., and 0, 0, 0 ...
            rf"({base}\.)?pooler\..+",
        ]
        heads = self.heads.values()
        # A tied decoder is the embedding; heads of tasks that were not asked for are skipped with a warning.
        unused += [rf"{re.escape(head.decoder)}\..+" for head in heads if head.decoder]
        skipped = [rf"{re.escape(layer.name)}\..+" for head in heads for layer in head.layers]
        skipped += [re.escape(head.bias) for head in heads if head.bias]
        return Family(
            self.name,
            gguf={self.name: self.from_gguf} if self.gguf_names else {},
            safetensors=dict.fromkeys((self.model_type or self.name, *self.also), self.from_config),
            unused=(*unused, *self.unused),
            skipped=tuple(dict.fromkeys(skipped)),
            keys=self.keys,
        )

    def from_config(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read ``config.json``."""
        keys = {**KEYS, **self.keys}
        config.refuse("position_embedding_type", "absolute")
        config.refuse("is_decoder", False)
        config.refuse("add_cross_attention", False)
        width, heads = config.count(keys["width"]), config.divisor(keys["heads"], keys["width"])
        head_dim, activation = width // heads, config.choice(keys["activation"], ACTIVATIONS, self.activation)
        epsilon = config.number(keys["norm_eps"], self.epsilon) if keys["norm_eps"] else self.epsilon
        norm = Norm("layer", epsilon)
        positions, first = config.count(keys["context"]), self.first_position(config)
        if first >= positions:
            problem = f"is {positions}; it must be above {first}, the first position"
            raise config.error(keys["context"], problem)
        narrow = config.count(keys["narrow"]) if keys["narrow"] else width
        narrow = narrow if self.widened or narrow != width else 0
        embedding = Embedding(
            config.count(keys["vocabulary"]),
            width,
            types=config.count(keys["types"], self.types) if keys["types"] else 0,
            norm=norm if self.embedding_norm else None,
            narrow=narrow,
            narrow_sum=bool(narrow),
        )
        attention = Attention(heads, heads, head_dim, head_dim**-0.5, causal=False, bias=True, output_bias=True)
        feedforward = FeedForward(config.count(keys["feed_forward"]), activation, gated=False, bias=True)
        layers = config.count(keys["layers"], limit=MAX_LAYERS)
        shared = self.layer_names(config, layers) if self.layer_names else None
        spec = ModelSpec(
            family=self.name,
            name=checkpoint.path.name,
            context=positions - first,
            embedding=embedding,
            position=Learned(positions - first),
            blocks=(Block(attention, feedforward, norm, self.placement),) * len(shared or range(layers)),
            final_norm=norm if self.final_norm else None,
        )
        spec = self.change(config, spec)
        heads_of_width = self._heads(narrow or width)
        outputs = read_outputs(checkpoint, config, heads_of_width, width, norm, activation)
        names = self.names.found_in(checkpoint.tensors)
        slots: Slots = names.slots(spec)
        if shared:
            slots = _shared(slots, names.prefix, shared)
        slots = as_stored(checkpoint, {**slots, **outputs.slots})
        ignored: tuple[Slot, ...] = ()
        if first:
            table = slots["position.weight"]
            assert isinstance(table, Slot)
            ignored = (replace(table, rows=(0, first)),)
            slots = {**slots, "position.weight": replace(table, rows=(first, positions))}
        return Model(outputs.of(spec), slots, config.name(keys["layers"]), ignored)

    def from_gguf(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read GGUF metadata. llama.cpp stores RoBERTa and DistilBERT as BERT: without the rows of the padding token.

        The activation function is the exact GELU, as in training; llama.cpp approximates it by a tanh. Token types are
        detected by their tensor.
        """
        assert self.gguf_names
        own = config.with_prefix(f"{self.name}.")
        own.refuse("attention.causal", False)
        norm, width = Norm("layer", own.number("attention.layer_norm_epsilon")), own.count("embedding_length")
        table = checkpoint.tensors.get("token_types.weight")
        rows = table.shape[0] if table is not None and len(table.shape) > 1 else 1
        types = config.count("tokenizer.ggml.token_type_count", rows) if table is not None else 0
        attention = replace(gguf_attention(checkpoint, own, None), causal=False, bias=True, output_bias=True)
        feedforward = FeedForward(own.count("feed_forward_length"), "gelu", gated=False, bias=True)
        positions = own.count("context_length")
        spec = ModelSpec(
            family=self.name,
            name=config.text("general.name", self.name),
            context=positions,
            embedding=Embedding(gguf_vocabulary(checkpoint, own), width, types=types, norm=norm),
            position=Learned(positions),
            blocks=(Block(attention, feedforward, norm, self.placement),) * own.count("block_count", limit=MAX_LAYERS),
        )
        outputs, names = gguf_outputs(checkpoint, own), self.gguf_names.found_in_gguf(checkpoint.tensors)
        slots = {**names.slots(spec), **outputs.slots}
        return Model(outputs.of(spec), slots, own.name("block_count"))

    def _heads(self, width: int) -> Heads:
        """The heads, with ``width`` columns in the narrow layers."""

        def layers_of(head: TaskHead) -> tuple[HeadLayer, ...]:
            return tuple(replace(one, width=width) if one.name in self.narrow_layers else one for one in head.layers)

        return {key: replace(head, layers=layers_of(head)) for key, head in self.heads.items()}


def _shared(slots: Slots, prefix: str, names: Iterable[str]) -> Slots:
    """The slots with the tensors of each block named after the layer of the file that the block uses."""
    found = dict(slots)
    for index, name in enumerate(names):
        own = f"blocks.{index}."
        for slot in (slot for slot in slots if slot.startswith(own)):
            source = slots[slot]
            assert isinstance(source, Slot)
            rest = source.tensor.removeprefix(f"{prefix}.{index}.")
            found[slot] = replace(source, tensor=f"{prefix}.{name}.{rest}")
    return found


OLD_NAMES = {"weight": "gamma", "bias": "beta"}
"""Parts of layer norms, and their names in files that were converted from TensorFlow."""


def as_stored(checkpoint: Checkpoint, slots: Slots) -> Slots:
    """The slots with the names that the file has for the weights and biases of layer norms (``OLD_NAMES``)."""

    def stored(source: Slot) -> Slot:
        base, _, part = source.tensor.rpartition(".")
        old = f"{base}.{OLD_NAMES.get(part, part)}"
        used = source.tensor not in checkpoint.tensors and old in checkpoint.tensors
        return replace(source, tensor=old) if used else source

    return {
        slot: tuple(map(stored, sources)) if isinstance(sources, tuple) else stored(sources)
        for slot, sources in slots.items()
    }
