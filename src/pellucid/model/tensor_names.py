"""Tensor names that most families share: names of llama.cpp in GGUF, of transformers in safetensors."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import product
from typing import TypeAlias

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from pellucid.errors import UnsupportedModel
from pellucid.model.shapes import ENCODER, Shape, expected_shapes
from pellucid.model.spec import DeltaNet, ModelSpec
from pellucid.model.weight_map import Slot


class TensorNames(Struct, frozen=True):
    """The names of the tensors in a format, without ".weight" and ".bias".

    ``names`` maps places to names. A *place* is the name of a slot without the number of its block and without
    ".weight" or ".bias": "attention.q". The tensor's name begins with ``prefix`` and the number of the block. Outside
    of blocks, a place begins with "model.": "model.embed". Commas join places with the same name: "attention.q,k,v". A
    key with ".weight" or ".bias", such as "attention.sinks.weight", maps to the full name of the tensor.
    ``NAMES | {...}`` replaces and adds names.

    Places of a block with the same name share a tensor: their rows are concatenated in the order of the slots (queries,
    keys, values; gate, up; with ``up_first``: up, gate). ``by_group`` lists shared tensors whose rows are ordered by
    group instead: for each key/value head the rows of its queries, key and value (GPT-NeoX); for each head the rows of
    its query and output gate; for each key head of a recurrent layer the rows of its parts (Qwen3-Next).

    In the name of an expert's tensor, "{}" is the number of the expert. A name without "{}" is one tensor (E, N, D) for
    all experts. If places share such a tensor, the matrix of each expert has the rows of all these places, concatenated
    or, if ``alternating``, interleaved.

    ``transposed`` lists the places whose matrices are stored as (inputs, outputs). ``norm_plus`` is added to the
    weights of norms, except the norms in ``plain_norms``. ``log_rates``: the rates of recurrent layers are stored as
    log(-rate). ``flat`` lists the places whose vectors are stored with several dimensions. ``encoder`` has the names of
    the encoder in an encoder-decoder.
    """

    names: Mapping[str, str]
    prefix: str
    transposed: frozenset[str] = field(default_factory=frozenset)
    norm_plus: float = 0.0
    plain_norms: frozenset[str] = field(default_factory=frozenset)
    by_group: frozenset[str] = field(default_factory=frozenset)
    alternating: bool = False
    log_rates: bool = False
    flat: frozenset[str] = field(default_factory=frozenset)
    encoder: TensorNames | None = None
    up_first: bool = False

    def __post_init__(self) -> None:
        names = {place: name for key, name in self.names.items() for place in places(key)}
        force_setattr(self, "names", names)

    def __or__(self, names: Mapping[str, str]) -> TensorNames:
        return replace(self, names={**self.names, **TensorNames(names, self.prefix).names})

    def found_in(self, tensors: Container[str]) -> TensorNames:
        """The names in a file, which may differ from these names in two ways.

        Files may have fused experts (``with_fused_experts``). In files that were saved without the head, names lack
        their first part: "transformer." in the published files of GPT-2 and BLOOM. In files with a head for questions,
        the first part may be "transformer." instead of "model.". transformers reads all variants.
        """
        fused = (f"{self.prefix}.{layer}.{FUSED}" for layer in range(MAX_DENSE_LAYERS))
        if "feedforward.experts.gate.weight" not in self.names and any(name in tensors for name in fused):
            return self.with_fused_experts()
        embed = self.names["model.embed"]
        base = embed.partition(".")[0] + "."
        if f"{embed}.weight" in tensors:
            return self
        for other in ("", "transformer."):
            if f"{other}{embed.removeprefix(base)}.weight" in tensors:
                break
        else:
            return self

        def renamed(name: str) -> str:
            return other + name.removeprefix(base) if name.startswith(base) else name

        model = {place: renamed(name) for place, name in self.names.items() if place.startswith("model.")}
        return replace(self | model, prefix=renamed(self.prefix))

    def with_fused_experts(self) -> TensorNames:
        """A copy with the names of transformers 5 for tensors of all experts."""
        return self.with_experts(FUSED, FUSED.replace("gate_up", "down"))

    def with_experts(self, gate_up: str, down: str, *, transposed: bool = False) -> TensorNames:
        """A copy with one tensor for gates and up-projections of all experts, and one for their down-projections."""
        experts = self | {"feedforward.experts.gate,up.weight": gate_up, "feedforward.experts.down.weight": down}
        more = places("feedforward.experts.gate,up,down") if transposed else ()
        return replace(experts, transposed=self.transposed.union(more))

    def found_in_gguf(self, tensors: Container[str]) -> TensorNames:
        """The names for a GGUF file that may store several places in one tensor.

        Most models have a tensor of queries, keys and values in this case. Older files of models with latent attention
        have a tensor of the up-projections of keys and values.
        """
        if "attention.k_up" in self.names and "blk.0.attn_kv_b.weight" in tensors:
            return self | {"attention.k_up,v_up": "attn_kv_b"}
        hybrid = "recurrent.q" in self.names  # recurrent layers of hybrid models use the name attn_qkv
        if "blk.0.attn_qkv.weight" not in tensors or hybrid:
            return self
        return self | {"attention.q,k,v": "attn_qkv"}

    def slots(self, spec: ModelSpec) -> dict[str, Slot | tuple[Slot, ...]]:
        """The slots of the spec, filled by tensors with these names.

        Raises:
            UnsupportedModel: the layers have more than ``MAX_HEADS`` attention heads. Each head may need a slot.
        """
        if (heads := sum(attention.heads for attention in spec.attentions)) > MAX_HEADS:
            raise UnsupportedModel(
                f"{spec.name}: the layers have a total of {heads:,} attention heads; the limit is {MAX_HEADS:,}"
            )
        slots: dict[str, Slot | tuple[Slot, ...]] = {}
        if self.encoder and spec.encoder:
            slots = {ENCODER + slot: source for slot, source in self.encoder.slots(spec.encoder).items()}
        groups: dict[str, list[tuple[str, Shape]]] = {}
        for slot, shape in expected_shapes(spec).items():
            if slot.startswith(ENCODER):
                continue
            place, _, part = slot.rpartition(".")
            if place.startswith("blocks."):
                _, index, inner = place.split(".", 2)
                attention = spec.blocks[int(index)].attention
                if attention and attention.latent and not attention.latent.query_rank:
                    inner = DIRECT.get(inner, inner)
                own = self.names.get(f"{inner}.{part}") or f"{self.names[inner]}.{part}"
                name = f"{self.prefix}.{index}.{own}"
                groups.setdefault(name, []).append((slot, shape))
            else:
                inner, name = place, f"{self.names[f'model.{place}']}.{part}"
            source = self._source(name, inner, part, shape)
            slots[slot] = source if "{}" not in name else _of_experts(source, shape[0])
        for name, shared in groups.items():
            if [slot.rsplit(".", 2)[1] for slot, _ in shared] == ["k_up", "v_up"]:
                slots |= _up_by_head(slots, shared)
            elif len(shared) > 1 and ".experts." in shared[0][0] and "{}" not in name:
                slots |= _rows_by_expert(slots, shared, self.alternating)
            elif len(shared) > 1:
                if self.up_first and ".feedforward." in shared[0][0]:
                    shared = shared[::-1]
                own = name.removeprefix(f"{self.prefix}.").partition(".")[2].rpartition(".")[0]
                rows = _rows_by_group(spec, slots, shared) if own in self.by_group else _rows(slots, shared)
                slots |= rows
        return slots

    def _source(self, name: str, place: str, part: str, shape: Shape) -> Slot:
        """The tensor that fills a part ("weight", "bias") of a place."""
        weight = part == "weight"
        convolution = weight and place.endswith("conv")  # stored as (N, 1, J)
        return Slot(
            name,
            self.norm_plus if weight and place.endswith("norm") and place not in self.plain_norms else 0.0,
            rows=(0, shape[0]) if convolution else None,
            transpose=weight and place in self.transposed,
            flat=weight and place in self.flat,
            negative_exp=weight and place == "recurrent.rate" and self.log_rates,
        )


def places(*keys: str) -> frozenset[str]:
    """Expand keys with commas to places: "attention.q,k" becomes "attention.q" and "attention.k"."""
    return frozenset(
        ".".join(parts) for key in keys for parts in product(*(part.split(",") for part in key.split(".")))
    )


Slots: TypeAlias = Mapping[str, "Slot | tuple[Slot, ...]"]


def _rows(slots: Slots, shared: Iterable[tuple[str, Shape]]) -> dict[str, Slot]:
    """The slots that share a tensor, each with its range of rows."""
    parts, start = {}, 0
    for name, shape in shared:
        slot = slots[name]
        assert isinstance(slot, Slot)
        parts[name] = replace(slot, rows=(start, start + shape[0]))
        start += shape[0]
    return parts


def _rows_by_group(spec: ModelSpec, slots: Slots, shared: Iterable[tuple[str, Shape]]) -> dict[str, tuple[Slot, ...]]:
    """The slots that share a tensor, each with its range of rows in every group of heads."""
    groups = _group_count(spec, [name for name, _ in shared])
    sizes = {name: shape[0] // groups for name, shape in shared}
    each, parts, before = sum(sizes.values()), {}, 0
    for name, size in sizes.items():
        slot = slots[name]
        assert isinstance(slot, Slot)
        starts = (group * each + before for group in range(groups))
        parts[name] = tuple(replace(slot, rows=(start, start + size)) for start in starts)
        before += size
    return parts


MAX_HEADS = 1 << 16  # limit of heads in all layers together; Llama 3.1 405B has 16,128
FUSED = "mlp.experts.gate_up_proj"
MAX_DENSE_LAYERS = 8
"""Number of first layers that are searched for fused experts, because the first layers may be dense."""
DIRECT = {"attention.q": "attention.q_direct", "attention.q_rotary": "attention.q_rotary_direct"}
"""Place → its replacement in latent attention whose queries are projections of the token, not of a latent vector."""


def _up_by_head(slots: Slots, shared: Sequence[tuple[str, Shape]]) -> dict[str, tuple[Slot, ...]]:
    """The up-projections of keys and values from a shared tensor: for each head the rows of its key, then of its value.

    The matrices of keys are transposed, because queries are multiplied by them.
    """
    (keys, (heads, _, plain)), (values, (_, value_dim, _)) = shared
    key, value = slots[keys], slots[values]
    assert isinstance(key, Slot)
    assert isinstance(value, Slot)
    starts = [head * (plain + value_dim) for head in range(heads)]
    return {
        keys: tuple(replace(key, transpose=True, columns=(start, start + plain)) for start in starts),
        values: tuple(replace(value, rows=(start + plain, start + plain + value_dim)) for start in starts),
    }


def _group_count(spec: ModelSpec, slots: Sequence[str]) -> int:
    """Number of groups in the rows of a block's tensor."""
    _, index, kind, _ = slots[0].split(".", 3)
    block = spec.blocks[int(index)]
    if kind == "recurrent":
        assert isinstance(block.recurrent, DeltaNet)
        return block.recurrent.key_heads
    assert block.attention
    keys = any(slot.split(".")[3] == "k" for slot in slots)
    return block.attention.kv_heads if keys else block.attention.heads


def _of_experts(source: Slot, experts: int) -> tuple[Slot, ...]:
    """The tensors of all experts. Their names differ only in the number of the expert."""
    return tuple(replace(source, tensor=source.tensor.replace("{}", str(expert))) for expert in range(experts))


def _rows_by_expert(
    slots: Slots, shared: Iterable[tuple[str, Shape]], alternating: bool
) -> dict[str, tuple[Slot, ...]]:
    """The slots that share a tensor of all experts, each with its range of rows in every expert.

    A tensor of biases (E, N) is treated as one vector.
    """
    sizes = {name: shape[1] for name, shape in shared}
    each, parts, before = sum(sizes.values()), {}, 0
    for number, (name, shape) in enumerate(shared):
        slot, size = slots[name], sizes[name]
        assert isinstance(slot, Slot)
        first, last = (number, each) if alternating else (before, before + size)
        parts[name] = tuple(
            replace(
                slot,
                rows=(expert * each + first, expert * each + last),
                step=len(sizes) if alternating else 1,
                flat=len(shape) == 2,
            )
            for expert in range(shape[0])
        )
        before += size
    return parts


GGUF = TensorNames(
    {
        "model.embed": "token_embd",
        "model.position": "position_embd",
        "model.embed.norm": "token_embd_norm",
        "model.norm": "output_norm",
        "model.project": "output",
        "attention.q": "attn_q",
        "attention.k": "attn_k",
        "attention.v": "attn_v",
        "attention.output": "attn_output",
        "attention.q_norm": "attn_q_norm",
        "attention.k_norm": "attn_k_norm",
        "attention.norm": "attn_norm",
        "attention.post_norm": "post_attention_norm",
        "feedforward.gate": "ffn_gate",
        "feedforward.up": "ffn_up",
        "feedforward.down": "ffn_down",
        "feedforward.norm": "ffn_norm",
        "feedforward.post_norm": "post_ffw_norm",
        "feedforward.router": "ffn_gate_inp",
        "feedforward.correction": "exp_probs_b",
        "feedforward.experts.gate": "ffn_gate_exps",
        "feedforward.experts.up": "ffn_up_exps",
        "feedforward.experts.down": "ffn_down_exps",
        "feedforward.shared.gate": "ffn_gate_shexp",
        "feedforward.shared.up": "ffn_up_shexp",
        "feedforward.shared.down": "ffn_down_shexp",
        "feedforward.shared_gate": "ffn_gate_inp_shexp",
    },
    "blk",
)
"""The names of llama.cpp."""

TRANSFORMERS = TensorNames(
    {
        "model.embed": "model.embed_tokens",
        "model.norm": "model.norm",
        "model.project": "lm_head",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention.norm": "input_layernorm",
        "attention.post_norm": "post_attention_layernorm",
        "feedforward.gate": "mlp.gate_proj",
        "feedforward.up": "mlp.up_proj",
        "feedforward.down": "mlp.down_proj",
        "feedforward.norm": "post_attention_layernorm",
        "feedforward.post_norm": "post_feedforward_layernorm",
        "feedforward.router": "mlp.gate",
        "feedforward.correction.bias": "mlp.gate.e_score_correction_bias",
        "feedforward.experts.gate": "mlp.experts.{}.gate_proj",
        "feedforward.experts.up": "mlp.experts.{}.up_proj",
        "feedforward.experts.down": "mlp.experts.{}.down_proj",
        "feedforward.shared.gate": "mlp.shared_experts.gate_proj",
        "feedforward.shared.up": "mlp.shared_experts.up_proj",
        "feedforward.shared.down": "mlp.shared_experts.down_proj",
    },
    "model.layers",
)
"""The names of most decoders in transformers."""

TRANSFORMERS_SANDWICH = TRANSFORMERS | {"feedforward.norm": "pre_feedforward_layernorm"}
"""The names of decoders in transformers that have norms before and after attention and feed-forward."""
FAIRSEQ_BLOCK = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention.norm": "self_attn_layer_norm",
    "feedforward.up": "fc1",
    "feedforward.down": "fc2",
    "feedforward.norm": "final_layer_norm",
}
"""The names of a block in models that were trained with fairseq: OPT, BART and its relatives."""
