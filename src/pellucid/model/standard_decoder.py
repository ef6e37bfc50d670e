"""One reader for decoder-only transformers. The differences between their families are data.

    QWEN2 = StandardDecoder("qwen2", bias=True).family()

The defaults are the values of Llama: attention and a gated feed-forward with RMS norms before them, rotary positions.
Tensors have the names of llama.cpp in GGUF and of transformers in safetensors. For differences that data cannot
express, a family has functions that change the finished spec: ``gguf_change`` and ``config_change`` read metadata,
``gguf_tensors_change`` reads the table of tensors. Families that differ more have their own readers (Gemma 4, BERT),
which use functions of ``metadata.py`` and ``metadata.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.metadata import (
    SlidingWindows,
    gguf_attention,
    gguf_of_layers,
    gguf_vocabulary,
    rope_parameters,
    rotary_dims,
)
from pellucid.model.outputs import Head
from pellucid.model.positions import Learned, Pairing, Rotary
from pellucid.model.spec import Activation, Attention, Block, Embedding, FeedForward, ModelSpec, Norm, Placement
from pellucid.model.standard_mixture import FeedForwards, StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint, Tensor

Change: TypeAlias = Callable[[Config, ModelSpec], ModelSpec]
"""(metadata, spec) → the spec with the changes of a family. For GGUF, the metadata add the architecture to each key."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Activation functions by their names in transformers."""

KEYS: Mapping[str, str] = {
    "context": "max_position_embeddings",
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "feed_forward": "intermediate_size",
    "layers": "num_hidden_layers",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "bias": "attention_bias",
    "feedforward_bias": "mlp_bias",
    "window": "",
}
"""The keys of config.json by meaning. The default of ``output_bias`` is the key of ``bias``."""

UNGROUPED_KEYS: Mapping[str, str] = {"kv_heads": "", "head_dim": "", "bias": "", "feedforward_bias": ""}
"""The keys of families without grouped-query attention and without options for biases."""

GPT_KEYS: Mapping[str, str] = {
    **UNGROUPED_KEYS,
    "context": "n_positions",
    "width": "n_embd",
    "heads": "n_head",
    "feed_forward": "n_inner",
    "layers": "n_layer",
    "activation": "activation_function",
    "norm_eps": "layer_norm_epsilon",
}
"""The keys of GPT-2. GPT and GPT-J share them."""

GPT_ALIASES: Mapping[str, str] = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}
"""Newer names of keys in ``GPT_KEYS``."""


class StandardDecoder(Struct, frozen=True):
    """The data of a family of decoders. A *default* applies if a file does not state the value.

    Names: ``name`` is the name of the family, ``model_type`` its name in config.json if it differs. ``architecture`` is
    its name in GGUF if it differs; None: the family has no GGUF architecture. ``also`` lists further names in
    config.json, ``gguf_also`` further names in GGUF.

    Positions: ``gguf_pairing`` is the pairing of rotary values in GGUF, ``pairing`` the pairing in config.json models.
    ``base`` is the default rotary base, ``rotated`` the default fraction of rotated values of a head, and
    ``default_rope_parameters`` the default table ``rope_parameters``. With ``partial``, config.json may state the
    fraction although ``rotated`` is 1. ``rope_keys`` are the keys of base and fraction before transformers 5.

    Attention: ``bias`` and ``output_bias`` are the defaults for biases of q, k, v and of the output. With
    ``head_norm``, the queries and keys of each head have a norm. With ``whole_norm``, the queries of all heads together
    have a norm, and the keys of all heads together. If ``head_norm`` is a string, it is the key of config.json that
    switches the norm on; in GGUF the presence of its tensor switches the norm on. ``sinks``: heads have attention
    sinks. ``windows`` describes the sliding windows of a family with windows in some layers.

    Feed-forward: ``activation`` is the default activation function, ``activations`` maps the names in config.json to
    activation functions. ``gated``: the feed-forward has a gate. ``feedforward_bias`` is the default for the biases of
    the feed-forward, ``widening`` the default of F / D (0: the file must state F). ``width_by_layer``: F may differ
    between layers. ``mixture`` describes the experts.

    Norms: ``norm`` is the norm with the default epsilon. For ``placement`` see ``Block``. ``final_norm``: a norm
    follows the last block.

    Head: ``tied`` is the default for a head tied to the embedding. ``head_bias``: the head has a bias.

    Layers: ``layer_count`` computes the number of layers if no key of config.json has it. ``mtp_layers`` is the key
    of config.json for the number of additional layers for multi-token prediction, which generation does not need. In
    GGUF, the number of layers includes these layers. For ``pattern`` and ``kv_by_layer`` see ``Family``.

    Keys: ``keys`` replaces keys of ``KEYS``; "" means that config.json has no such key. ``defaults`` has defaults by
    meaning, for example {"context": 2048}; without a default, the file must state the value. ``aliases`` and
    ``gguf_aliases`` map keys to alternative names: names in older files, and names that transformers or llama.cpp also
    accepts. For ``unused`` and ``skipped`` see ``Family``.
    """

    name: str
    architecture: str | None = ""
    model_type: str = ""
    also: tuple[str, ...] = ()
    gguf_also: tuple[str, ...] = ()
    positions: Literal["rotary", "learned", "alibi", "none"] = "rotary"
    gguf_pairing: Pairing = "half"
    pairing: Pairing = "half"
    base: float = 10_000.0
    default_rope_parameters: Mapping[str, object] = field(default_factory=dict)
    rotated: float = 1.0
    partial: bool = False
    rope_keys: tuple[str, str] = ("rope_theta", "partial_rotary_factor")
    bias: bool = False
    output_bias: bool = False
    head_norm: bool | str = False
    whole_norm: bool = False
    sinks: bool = False
    windows: SlidingWindows | None = None
    activation: Activation = "silu"
    activations: Mapping[str, Activation] = field(default_factory=lambda: ACTIVATIONS)
    gated: bool = True
    feedforward_bias: bool = False
    widening: int = 0
    width_by_layer: bool = False
    mixture: StandardMixture | None = None
    mtp_layers: str = ""
    layer_count: Callable[[Config], int] | None = None
    pattern: tuple[str, ...] = ()
    kv_by_layer: bool = False
    norm: Norm = field(default_factory=lambda: Norm("rms", 1e-6))
    placement: Placement = "pre"
    final_norm: bool = True
    tied: bool = False
    head_bias: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    gguf_aliases: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    gguf_names: TensorNames = GGUF
    names: TensorNames = TRANSFORMERS
    gguf_change: Change = lambda config, spec: spec
    gguf_tensors_change: Callable[[Mapping[str, Tensor], ModelSpec], ModelSpec] = lambda tensors, spec: spec
    config_change: Change = lambda config, spec: spec

    def family(self) -> Family:
        """The `Family` with readers for both kinds of checkpoint."""
        own, experts = (
            self.architecture is not None,
            self.mixture.dimensions if self.mixture and self.mixture.in_config else {},
        )
        up = "ffn_up_exps" if experts else "ffn_up"
        biases = {
            f"{self.gguf_names.names['attention.q']}": self.bias,
            "attn_output": self.output_bias,
            up: self.feedforward_bias,
        }
        return Family(
            self.name,
            gguf=dict.fromkeys((self.architecture or self.name, *self.gguf_also), self.from_gguf) if own else {},
            safetensors=dict.fromkeys((self.model_type or self.name, *self.also), self.from_config),
            unused=self.unused,
            skipped=self.skipped,
            keys={**self.keys, **experts},
            biases=[f"blk.0.{name}.bias" for name, usual in biases.items() if usual],
            pattern=self.pattern,
            kv_by_layer=self.kv_by_layer,
        )

    def from_gguf(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read GGUF metadata. Biases are detected by the presence of their tensors."""
        own = config.with_prefix(f"{config.text('general.architecture')}.").with_aliases(self.gguf_aliases)
        rms, layer = (f"attention.layer_norm_{kind}" for kind in ("rms_epsilon", "epsilon"))
        epsilon = rms if self.norm.kind == "rms" and (own.has(rms) or not own.has(layer)) else layer
        width, present = own.count("embedding_length"), checkpoint.tensors.__contains__
        names = self.gguf_names.found_in_gguf(checkpoint.tensors)
        attention = gguf_attention(checkpoint, own, self.gguf_pairing if self.positions == "rotary" else None)
        up = "ffn_up" if present("blk.0.ffn_up.weight") else "ffn_up_exps"
        width_key = "feed_forward_length"
        if self.mixture and not own.has(width_key):  # all layers have experts
            width_key = "expert_feed_forward_length"
        further = own.optional_count("nextn_predict_layers") if self.mtp_layers else 0
        layers = own.count("block_count", limit=MAX_LAYERS) - further
        if layers < 1:
            raise own.error("nextn_predict_layers", f"is {further}; it must be below block_count = {layers + further}")
        widths = _widths(own, width_key, layers) if self.width_by_layer else [gguf_of_layers(own, width_key)] * layers
        dense = FeedForward(widths[0], self.activation, self.gated, present(f"blk.0.{up}.bias"))
        spec = self._spec(
            name=config.text("general.name", self.name),
            context=own.count("context_length"),
            embedding=Embedding(gguf_vocabulary(checkpoint, own), width),
            attention=replace(
                attention,
                bias=present(f"blk.0.{names.names['attention.q']}.bias"),
                output_bias=present("blk.0.attn_output.bias"),
            ),
            feedforwards=self.mixture.from_gguf(own, dense, layers)
            if self.mixture
            else [replace(dense, width=width) for width in widths],
            norm=replace(self.norm, eps=own.number(epsilon)),
            head_norm=present("blk.0.attn_q_norm.weight") if isinstance(self.head_norm, str) else self.head_norm,
            head=Head(tied=not present("output.weight"), bias=present("output.bias")),
        )
        spec = self.windows.from_gguf(own, spec) if self.windows else spec
        spec = self.gguf_tensors_change(checkpoint.tensors, self.gguf_change(own, spec))
        return Model(spec, names.slots(spec), own.name("block_count"), mtp_layers=further)

    def from_config(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read ``config.json``."""
        config, keys = config.with_aliases(self.aliases), {**KEYS, **self.keys}
        if self.default_rope_parameters and not (config.has("rope_parameters") or config.has("rope_scaling")):
            config = replace(config, values={**config.values, "rope_parameters": self.default_rope_parameters})
        keys.setdefault("output_bias", keys["bias"])

        def count(meaning: str, default: int | None = None) -> int:
            usual = self.defaults.get(meaning, default)
            return int(config.count(keys[meaning]) if usual is None else config.count(keys[meaning], usual))

        width, heads = count("width"), count("heads")
        if config.has(keys["head_dim"]) or "head_dim" in self.defaults:
            head_dim = count("head_dim")
        else:
            head_dim = width // config.divisor(keys["heads"], keys["width"])
        kv_heads = heads
        if keys["kv_heads"]:
            usual = self.defaults.get("kv_heads", heads)
            kv_heads = config.divisor(keys["kv_heads"], keys["heads"], usual, of=heads)
        default = next(name for name, kind in self.activations.items() if kind == self.activation)
        activation = config.choice(keys["activation"], self.activations, default)
        rotary = None
        if self.positions == "rotary":
            base_key, part_key = self.rope_keys
            kind = "full_attention" if self.windows and self.windows.own_positions else ""
            base, scaling = rope_parameters(config, kind, base_key, self.base)
            dims = head_dim
            if self.partial or self.rotated != 1:
                dims = rotary_dims(config, head_dim, self.rotated, part_key)
            rotary = Rotary(base, dims, self.pairing, scaling)
        layers = self.layer_count(config) if self.layer_count else config.count(keys["layers"], limit=MAX_LAYERS)
        if self.width_by_layer:
            widths = _widths(config, keys["feed_forward"], layers)
        else:
            widths = [count("feed_forward", self.widening * width or None)] * layers
        feedforward_bias = _flag(config, keys["feedforward_bias"], self.feedforward_bias)
        dense = FeedForward(widths[0], activation, self.gated, feedforward_bias)
        spec = self._spec(
            name=checkpoint.path.name,
            context=count("context"),
            embedding=Embedding(count("vocabulary"), width),
            attention=Attention(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rotary=rotary,
                bias=_flag(config, keys["bias"], self.bias),
                output_bias=_flag(config, keys["output_bias"], self.output_bias),
                window=config.optional_count(keys["window"]) if keys["window"] else 0,
            ),
            feedforwards=self.mixture.from_config(config, dense, layers)
            if self.mixture
            else [replace(dense, width=width) for width in widths],
            norm=replace(
                self.norm, eps=config.number(keys["norm_eps"], self.norm.eps) if keys["norm_eps"] else self.norm.eps
            ),
            head_norm=config.flag(self.head_norm, False) if isinstance(self.head_norm, str) else self.head_norm,
            head=Head(tied_head(checkpoint, config, default=self.tied), bias=self.head_bias),
        )
        spec = self.windows.from_config(config, spec, self.base) if self.windows else spec
        spec = self.config_change(config, spec)
        names = self.names.found_in(checkpoint.tensors)
        further = config.optional_count(self.mtp_layers) if self.mtp_layers else 0
        return Model(spec, names.slots(spec), config.name(keys["layers"]), mtp_layers=further)

    def _spec(
        self,
        name: str,
        context: int,
        embedding: Embedding,
        attention: Attention,
        feedforwards: FeedForwards,
        norm: Norm,
        head_norm: bool,
        head: Head,
    ) -> ModelSpec:
        attention = replace(
            attention,
            qk_norm=norm if head_norm or self.whole_norm else None,
            sinks=self.sinks,
            qk_norm_whole=self.whole_norm,
            alibi=self.positions == "alibi",
        )
        return ModelSpec(
            self.name,
            name,
            context,
            embedding,
            tuple(Block(attention, feedforward, norm, self.placement) for feedforward in feedforwards),
            position=Learned(context) if self.positions == "learned" else None,
            final_norm=norm if self.final_norm else None,
            head=head,
        )


GPT_LIKE = StandardDecoder(
    "",
    bias=True,
    output_bias=True,
    activation="gelu_tanh",
    gated=False,
    feedforward_bias=True,
    norm=Norm("layer", 1e-5),
    tied=True,
)
"""The parts that most decoders share whose blocks follow GPT-2 instead of Llama."""


def tied_head(checkpoint: Checkpoint, config: Config, default: bool) -> bool:
    """True if the output projection is the embedding: the metadata tie them, and the file has no separate matrix.

    A separate matrix takes precedence over the metadata, as in transformers 5 and llama.cpp.
    """
    return config.flag("tie_word_embeddings", default) and "lm_head.weight" not in checkpoint.tensors


def _widths(config: Config, key: str, layers: int) -> list[int]:
    widths = config.by_layer(key, layers)
    if not all(widths):
        raise config.error(key, f"is 0 in layer {widths.index(0)}; it must be above 0 in each layer")
    return widths


def _flag(config: Config, key: str, default: bool) -> bool:
    """The boolean value of ``key``, or the default if the family has no such key ("")."""
    return config.flag(key, default) if key else default
