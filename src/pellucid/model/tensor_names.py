"""Tensor names that most families share: llama.cpp's in GGUF, transformers' decoders' in safetensors."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.model.filled import Slot
from pellucid.model.shapes import Shape, expected_shapes
from pellucid.model.spec import DeltaNet, ModelSpec


class TensorNames(Struct, frozen=True):
    """The names of a format's tensors, without ".weight" and ".bias".

    ``model`` and ``block`` map places, such as "attention.q", to names; those of blocks follow ``prefix`` and the
    block's number. A key with a part, "attention.sinks.weight", stands for the tensor's whole name. Places of a block
    with the same name share its tensor: their rows follow each other in the order of the slots (queries, keys, values;
    gate, up). In the name of an expert's tensor "{}" is the expert's number; without it, one tensor holds those of all
    experts, (E, N, D), and places that share it have their rows within each expert, one after the other or, if
    ``alternating``, in turn. ``transposed`` are the places whose matrices are stored as (inputs, outputs).
    ``norm_plus`` is added to the weights of norms, except those of ``plain_norms``. ``by_group`` are shared tensors
    whose rows are by group: for each key/value head those of its queries, of its key and of its value (GPT-NeoX); for
    each head those of its queries and of its output gate; for each key head of a recurrent layer those of its parts
    (Qwen3-Next). ``log_rates``: the rates of recurrent layers are stored as log(-rate). ``flat`` are places whose
    vectors are stored with several dimensions.
    """

    model: Mapping[str, str]
    block: Mapping[str, str]
    prefix: str
    transposed: frozenset[str] = field(default_factory=frozenset)
    norm_plus: float = 0.0
    plain_norms: frozenset[str] = field(default_factory=frozenset)
    by_group: frozenset[str] = field(default_factory=frozenset)
    alternating: bool = False
    log_rates: bool = False
    flat: frozenset[str] = field(default_factory=frozenset)

    def with_names(self, model: Mapping[str, str] | None = None, **block: str) -> TensorNames:
        """A copy with other names. In ``block`` a dot in a place is written as "__"."""
        named = {place.replace("__", "."): name for place, name in block.items()}
        return replace(self, model={**self.model, **(model or {})}, block={**self.block, **named})

    def found_in(self, tensors: Container[str]) -> TensorNames:
        """These names, or those of a file that was saved without the head: they lack the first part, "transformer.".

        transformers reads both; the published files of GPT-2 and BLOOM are such.
        """
        fused = (f"{self.prefix}.{layer}.{FUSED}" for layer in range(MOST_DENSE))
        if "feedforward.experts.gate.weight" not in self.block and any(name in tensors for name in fused):
            return self.with_fused_experts()
        embed = self.model["embed"]
        base = embed.partition(".")[0] + "."
        if f"{embed}.weight" in tensors or f"{embed.removeprefix(base)}.weight" not in tensors:
            return self
        model = {place: name.removeprefix(base) for place, name in self.model.items()}
        return replace(self, model=model, prefix=self.prefix.removeprefix(base))

    def with_fused_experts(self) -> TensorNames:
        """A copy with transformers 5's names of tensors that hold all experts."""
        return self.with_experts(FUSED, FUSED.replace("gate_up", "down"))

    def with_experts(self, gate_up: str, down: str, *, transposed: bool = False) -> TensorNames:
        """A copy in which one tensor has the gates and ups of all experts, and another one their downs."""
        named = {"gate": gate_up, "up": gate_up, "down": down}
        block = {f"feedforward.experts.{part}.weight": name for part, name in named.items()}
        places = {f"feedforward.experts.{part}" for part in named} if transposed else ()
        return replace(self, block={**self.block, **block}, transposed=self.transposed.union(places))

    def found_in_gguf(self, tensors: Container[str]) -> TensorNames:
        """These names, or those of a file in which one tensor has what these give several.

        It has queries, keys and values; or, in older files of models with latent attention, what makes keys and values.
        """
        if "attention.k_up" in self.block and "blk.0.attn_kv_b.weight" in tensors:
            return self.with_names(attention__k_up="attn_kv_b", attention__v_up="attn_kv_b")
        hybrid = "recurrent.q" in self.block  # whose recurrent layers have a tensor of this name
        if "blk.0.attn_qkv.weight" not in tensors or hybrid:
            return self
        return self.with_names(attention__q="attn_qkv", attention__k="attn_qkv", attention__v="attn_qkv")

    def slots(self, spec: ModelSpec) -> dict[str, Slot | tuple[Slot, ...]]:
        """Every slot of the spec, filled by tensors with these names.

        Raises:
            UnsupportedModel: the layers have more attention heads than any model has; each may have places of its own.
        """
        if (heads := sum(attention.heads for attention in spec.attentions)) > MOST_HEADS:
            raise UnsupportedModel(
                f"{spec.name}: its layers have {heads:,} attention heads together; at most {MOST_HEADS:,} are read"
            )
        slots: dict[str, Slot | tuple[Slot, ...]] = {}
        groups: dict[str, list[tuple[str, Shape]]] = {}
        for slot, shape in expected_shapes(spec).items():
            place, _, part = slot.rpartition(".")
            if place.startswith("blocks."):
                _, index, inner = place.split(".", 2)
                attention = spec.blocks[int(index)].attention
                if attention and attention.latent and not attention.latent.query_rank:
                    inner = DIRECT.get(inner, inner)
                own = self.block.get(f"{inner}.{part}") or f"{self.block[inner]}.{part}"
                name = f"{self.prefix}.{index}.{own}"
                groups.setdefault(name, []).append((slot, shape))
            else:
                inner, name = place, f"{self.model[place]}.{part}"
            source = self._source(name, inner, part, shape)
            slots[slot] = source if "{}" not in name else _of_experts(source, shape[0])
        for name, shared in groups.items():
            if [slot.rsplit(".", 2)[1] for slot, _ in shared] == ["k_up", "v_up"]:
                slots |= _up_by_head(slots, shared)
            elif len(shared) > 1 and ".experts." in shared[0][0] and "{}" not in name:
                slots |= _rows_by_expert(slots, shared, self.alternating)
            elif len(shared) > 1:
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


Slots: TypeAlias = Mapping[str, "Slot | tuple[Slot, ...]"]


def _rows(slots: Slots, shared: Iterable[tuple[str, Shape]]) -> dict[str, Slot]:
    """The slots that share a tensor, each with its rows."""
    found, start = {}, 0
    for name, shape in shared:
        slot = slots[name]
        assert isinstance(slot, Slot)
        found[name] = replace(slot, rows=(start, start + shape[0]))
        start += shape[0]
    return found


def _rows_by_group(
    spec: ModelSpec, slots: Slots, shared: Iterable[tuple[str, Shape]]
) -> dict[str, tuple[Slot, ...]]:
    """The slots that share a tensor, each with its rows in every group of heads."""
    groups = _group_count(spec, [name for name, _ in shared])
    sizes = {name: shape[0] // groups for name, shape in shared}
    each, found, before = sum(sizes.values()), {}, 0
    for name, size in sizes.items():
        slot = slots[name]
        assert isinstance(slot, Slot)
        starts = (group * each + before for group in range(groups))
        found[name] = tuple(replace(slot, rows=(start, start + size)) for start in starts)
        before += size
    return found


MOST_HEADS = 1 << 16  # of all layers; Llama 3.1 405B has 16,128
FUSED = "mlp.experts.gate_up_proj"
MOST_DENSE = 8
"""The first layers among which one has experts, in files with fused experts."""
DIRECT = {"attention.q": "attention.q_direct", "attention.q_rotary": "attention.q_rotary_direct"}
"""Places of latent attention whose queries are made of the token itself, not of a narrower vector."""


def _up_by_head(slots: Slots, shared: Sequence[tuple[str, Shape]]) -> dict[str, tuple[Slot, ...]]:
    """The matrices that make keys and values of a latent vector: a tensor has the rows of each head's key, then value.

    Those of keys are transposed, because they are multiplied with queries.
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
    """The number of groups by which the rows of a block's tensor are ordered."""
    _, index, kind, _ = slots[0].split(".", 3)
    block = spec.blocks[int(index)]
    if kind == "recurrent":
        assert isinstance(block.recurrent, DeltaNet)
        return block.recurrent.key_heads
    assert block.attention
    keys = any(slot.split(".")[3] == "k" for slot in slots)
    return block.attention.kv_heads if keys else block.attention.heads


def _of_experts(source: Slot, experts: int) -> tuple[Slot, ...]:
    """The tensors of the experts, whose names differ in their numbers."""
    return tuple(
        replace(source, tensor=source.tensor.replace("{}", str(expert))) for expert in range(experts)
    )


def _rows_by_expert(
    slots: Slots, shared: Iterable[tuple[str, Shape]], alternating: bool
) -> dict[str, tuple[Slot, ...]]:
    """The slots of several parts of all experts that share a tensor, each with its rows in every expert.

    The tensor of biases (E, N) counts as one vector.
    """
    sizes = {name: shape[1] for name, shape in shared}
    each, found, before = sum(sizes.values()), {}, 0
    for number, (name, shape) in enumerate(shared):
        slot, size = slots[name], sizes[name]
        assert isinstance(slot, Slot)
        first, last = (number, each) if alternating else (before, before + size)
        found[name] = tuple(
            replace(
                slot,
                rows=(expert * each + first, expert * each + last),
                step=len(sizes) if alternating else 1,
                flat=len(shape) == 2,
            )
            for expert in range(shape[0])
        )
        before += size
    return found


GGUF = TensorNames(
    {"embed": "token_embd", "position": "position_embd", "embed.norm": "token_embd_norm", "norm": "output_norm",
     "project": "output"},
    {
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
)  # fmt: skip
"""llama.cpp's names."""

TRANSFORMERS = TensorNames(
    {"embed": "model.embed_tokens", "norm": "model.norm", "project": "lm_head"},
    {
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

TRANSFORMERS_SANDWICH = TRANSFORMERS.with_names(feedforward__norm="pre_feedforward_layernorm")
"""The names of decoders in transformers with norms before and after attention and feed-forward."""
