"""Parts of the readers of encoder-decoders: the first tokens of the decoder, and families of BART's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from pellucid.errors import UnsupportedModel, brief, shown
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.output_heads import CLASS
from pellucid.model.outputs import Head
from pellucid.model.positions import Learned, Sinusoidal
from pellucid.model.spec import Attention, Block, Embedding, FeedForward, ModelSpec, Norm, Placement
from pellucid.model.standard_decoder import ACTIVATIONS
from pellucid.model.tensor_names import FAIRSEQ_BLOCK, TensorNames
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json

GENERATION = "generation_config.json"
GENERATES = "ConditionalGeneration"
"""The ending of the classes that generate text."""


def refuse_heads(config: Config) -> None:
    """Refuse the classes of encoder-decoders with a head for another task than generation.

    Raises:
        UnsupportedModel: the class in ``architectures`` has another head.
    """
    listed = config.value("architectures")
    for name in listed if isinstance(listed, list) else ():
        found = CLASS.fullmatch(str(name))
        if found and found[1] != GENERATES:
            raise UnsupportedModel(
                f"{config.path.name}: architectures is {brief(name)}: a head for {shown(found[1])} is not supported in "
                f"an encoder-decoder (known: {GENERATES})"
            )


def first_tokens(checkpoint: Checkpoint, config: Config, vocabulary: int, default: int | None = None) -> tuple[int]:
    """The token that the decoder reads before the answer, as a tuple.

    It is ``decoder_start_token_id`` or else ``bos_token_id``, of generation_config.json or else of config.json.

    Raises:
        FileFormatError: no file states the token, or the token is outside the vocabulary.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    path = folder / GENERATION
    generation = Config(read_json(path), path) if path.is_file() else config
    for key in ("decoder_start_token_id", "bos_token_id"):
        for table in (generation, config):
            if type(token := table.value(key)) is int:
                table.token_ids(key, vocabulary)
                return (token,)
        if default is not None and default < vocabulary:
            return (default,)
    raise config.error("decoder_start_token_id", "missing; it must be the first token of the decoder")


CROSS_ATTENTION = {
    "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj",
    "cross.v": "encoder_attn.v_proj",
    "cross.output": "encoder_attn.out_proj",
    "cross.norm": "encoder_attn_layer_norm",
}


def _names(side: str) -> TensorNames:
    """The tensor names of the "encoder" or "decoder"."""
    names = {
        "model.embed": "model.shared",
        "model.position": f"model.{side}.embed_positions",
        "model.embed.norm": f"model.{side}.layernorm_embedding",
        "model.norm": f"model.{side}.layer_norm",
        "model.project": "lm_head",
        **FAIRSEQ_BLOCK,
    }
    return TensorNames(names | (CROSS_ATTENTION if side == "decoder" else {}), f"model.{side}.layers")


NAMES = replace(_names("decoder"), encoder=_names("encoder"))
"""The names of BART in transformers."""
LOGITS_BIAS = "final_logits_bias"
TABLE = "model.decoder.embed_positions.weight"
"""A table of positions, which files of sinusoidal positions may have too."""


class StandardEncoderDecoder(Struct, frozen=True):
    """The data of a family of encoder-decoders of BART's form (Lewis et al. 2019).

    ``model_type`` is the name of the family in config.json. ``placement`` is the placement of the norms.
    ``final_norm``: a norm follows the last block. ``embedding_norm``: a norm follows the embedding; with
    ``norm_first``, the decoder adds the positions after this norm. ``positions`` are learned or sinusoidal vectors; a
    file may have a table of the sinusoids, and then the table counts.
    ``offset`` is the position of the first token: the number of rows of a learned table before it. For ``endpoint`` see
    `Sinusoidal`. ``activation``, ``scale_embedding`` and ``start`` (the first token of the decoder) are the defaults.
    """

    name: str
    model_type: str = ""
    placement: Placement = "post"
    final_norm: bool = False
    embedding_norm: bool = False
    norm_first: bool = False
    positions: Literal["learned", "sinusoidal"] = "learned"
    offset: int = 0
    endpoint: bool = True
    activation: str = "gelu"
    scale_embedding: bool = False
    start: int | None = None
    defaults: Mapping[str, int] = field(default_factory=dict)

    def family(self) -> Family:
        """The `Family` of safetensors files."""
        # Copies of the shared embedding, and the sinusoids of older files of M2M-100.
        unused = (r"(model\.)?(en|de)coder\.embed_(tokens\.weight|positions\.weights)",)
        sides = {"layers": "layers", "heads": "attention_heads", "feed_forward": "ffn_dim"}
        keys = {meaning: f"encoder_{key},decoder_{key}" for meaning, key in sides.items()} | {"width": "d_model"}
        return Family(self.name, safetensors={self.model_type or self.name: self.from_config}, unused=unused, keys=keys)

    def from_config(self, checkpoint: Checkpoint, config: Config) -> Model:
        """Read ``config.json``."""
        config.flag("is_encoder_decoder", True)
        refuse_heads(config)
        config.refuse("share_encoder_decoder_embeddings", True)
        vocabulary, positions = config.count("vocab_size"), config.count("max_position_embeddings")
        config.check_count("decoder_vocab_size", vocabulary, "because encoder and decoder share a vocabulary")
        norm = Norm("layer", 1e-5)
        scale = config.count("d_model") ** 0.5 if config.flag("scale_embedding", self.scale_embedding) else 1.0
        embedding = Embedding(
            vocabulary, config.count("d_model"), scale=scale, norm=norm if self.embedding_norm else None
        )
        position: Learned | Sinusoidal = Learned(positions)
        if self.positions == "sinusoidal" and TABLE not in checkpoint.tensors:
            position = Sinusoidal(10_000.0, self.offset, self.endpoint)
        tied = "lm_head.weight" not in checkpoint.tensors
        encoder = ModelSpec(
            family=self.name,
            name=checkpoint.path.name,
            context=positions,
            embedding=embedding,
            position=position,
            blocks=self._blocks(config, "encoder", norm),
            final_norm=norm if self.final_norm else None,
        )
        spec = replace(
            encoder,
            embedding=replace(embedding, scale=1.0, norm_first=True) if self.norm_first else embedding,
            blocks=self._blocks(config, "decoder", norm),
            head=Head(tied, bias=LOGITS_BIAS in checkpoint.tensors),
            encoder=encoder,
            start=first_tokens(checkpoint, config, vocabulary, self.start),
        )
        return self._with_slots(checkpoint, config, spec)

    def _blocks(self, config: Config, side: str, norm: Norm) -> tuple[Block, ...]:
        heads, width = config.divisor(f"{side}_attention_heads", "d_model"), config.count("d_model")
        head_dim = width // heads
        attention = Attention(
            heads, heads, head_dim, head_dim**-0.5, causal=side == "decoder", bias=True, output_bias=True
        )
        activation = config.choice("activation_function", ACTIVATIONS, self.activation)
        feedforward = FeedForward(config.count(f"{side}_ffn_dim"), activation, gated=False, bias=True)
        cross = replace(attention, causal=False) if side == "decoder" else None
        layers = config.count(f"{side}_layers", limit=MAX_LAYERS)
        block = Block(attention, feedforward, norm, self.placement, cross=cross)
        return tuple([block] * layers)

    def _with_slots(self, checkpoint: Checkpoint, config: Config, spec: ModelSpec) -> Model:
        assert NAMES.encoder
        tensors, ignored = checkpoint.tensors, list[Slot]()
        names = replace(NAMES.found_in(tensors), encoder=NAMES.encoder.found_in(tensors))
        slots = names.slots(spec)
        if spec.head and spec.head.bias:
            slots["project.bias"] = Slot(LOGITS_BIAS, flat=True)
        if self.positions == "learned" and self.offset:
            for slot in ("position.weight", "encoder.position.weight"):
                table = slots[slot]
                assert isinstance(table, Slot)
                slots[slot] = replace(table, rows=(self.offset, spec.context + self.offset))
                ignored.append(replace(table, rows=(0, self.offset)))
        return Model(spec, slots, config.name("decoder_layers"), ignored=tuple(ignored))
