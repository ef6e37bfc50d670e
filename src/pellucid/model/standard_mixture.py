"""One reader for mixtures of experts. The differences between their families are data.

    StandardDecoder("olmoe", mixture=StandardMixture(keys={"width": "intermediate_size"}))

Keys of GGUF files have the same names in all families. Facts that no key states, for example normalized weights, are
data of the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import FeedForward, Mixture, Router

FeedForwards: TypeAlias = "list[FeedForward | Mixture]"
Score: TypeAlias = Literal["softmax", "sigmoid"]

KEYS: Mapping[str, str] = {
    "chosen": "num_experts_per_tok",
    "width": "moe_intermediate_size",
    "normalize": "norm_topk_prob",
    "scale": "",
    "groups": "",
    "kept": "",
    "shared": "",
    "shared_width": "",
    "dense": "",
}
"""The keys of config.json by meaning. A key with the name "" is not read.

``shared`` is the key of the shared expert's width as a multiple of an expert's width, ``shared_width`` the key of this
width in values. ``dense`` is the key of the number of first layers without experts.
"""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of the number of experts. The key depends on the family and on the version of transformers."""

MAX_EXPERTS_OF_MODEL = 1 << 16  # limit of experts in all layers together; DeepSeek V3 has 14,848
MAX_EXPERTS = 4096  # limit of experts in a layer, because each expert takes memory for tensor names and slots
GATES: Mapping[int, Score] = {1: "softmax", 2: "sigmoid", 3: "softmax"}
"""Scores by llama.cpp's numbers. 3 is the softmax over the chosen experts, equal to the normalized softmax over all."""
SOFTMAX_OF_CHOSEN = 3


class StandardMixture(Struct, frozen=True):
    """The data of the mixtures of experts of a family.

    ``score``, ``normalize``, ``bias``, ``correction`` and ``group_best`` are defaults of the fields of ``spec.Router``.
    ``gguf_normalize`` is the default of ``normalize`` in GGUF files if it differs. ``shared_gate``: the shared expert
    has a gate. ``optional``: the family also has models without experts. ``count_optional``: the config.json of these
    models need not state a number of experts. ``in_config`` is False if no config.json of the family has experts.
    ``sparse_step``: config.json selects the layers with experts as in Qwen (``decoder_sparse_step``,
    ``mlp_only_layers``). ``correction_key`` is the key of config.json for ``correction``.
    """

    score: Score = "softmax"
    normalize: bool = False
    gguf_normalize: bool | None = None
    bias: bool = False
    correction: bool = False
    group_best: int = 1
    shared_gate: bool = False
    optional: bool = False
    in_config: bool = True
    count_optional: bool = False
    sparse_step: bool = False
    correction_key: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> dict[str, str]:
        """The keys of config.json by dimension."""
        keys = {**KEYS, **self.keys}
        return {"experts": EXPERTS[0], "chosen": keys["chosen"], "expert_width": keys["width"]}

    def from_gguf(self, config: Config, dense: FeedForward, layers: int) -> FeedForwards:
        """The feed-forward of each layer, from the GGUF keys of an architecture."""
        experts = config.optional_count("expert_count", limit=MAX_EXPERTS)
        limit_experts(config, "expert_count", experts, layers)
        if not experts:
            if self.optional:
                return [dense] * layers
            config.count("expert_count", limit=MAX_EXPERTS)
        width = config.count("expert_feed_forward_length", dense.width)
        shared_width = config.optional_count("expert_shared_feed_forward_length")
        shared_width = shared_width or width * config.optional_count("expert_shared_count")
        normalize = self.normalize if self.gguf_normalize is None else self.gguf_normalize
        gate = config.count_choice("expert_gating_func", GATES)
        router = self._router(
            config,
            experts,
            config.count("expert_used_count", limit=experts),
            config.optional_number("expert_weights_scale") or 1.0,
            config.optional_count("expert_group_count") or 1,
            config.optional_count("expert_group_used_count") or 1,
            "expert_group_count",
        )
        router = replace(
            router,
            score=GATES[gate] if gate else self.score,
            group_best=2,  # in llama.cpp for every architecture
            normalize=config.flag("expert_weights_norm", normalize) or gate == SOFTMAX_OF_CHOSEN,
        )
        mixture = self._mixture(router, replace(dense, width=width), shared_width)
        first = config.optional_count("leading_dense_block_count")
        return [dense if layer < first else mixture for layer in range(layers)]

    def from_config(self, config: Config, dense: FeedForward, layers: int) -> FeedForwards:
        """The feed-forward of each layer, from ``config.json``."""
        keys = {**KEYS, **self.keys}
        experts = _experts(config, self.optional, self.count_optional) if self.in_config else 0
        if not experts:
            return [dense] * layers
        limit_experts(config, EXPERTS[0], experts, layers)
        width = config.count(keys["width"]) if keys["width"] else dense.width
        shared_width = config.optional_count(keys["shared_width"], required=True) if keys["shared_width"] else 0
        if keys["shared"]:
            shared_width = width * config.optional_count(keys["shared"], required=True)
        router = self._router(
            config,
            experts,
            config.count(keys["chosen"], limit=experts),
            config.number(keys["scale"]) if keys["scale"] else 1.0,
            config.count(keys["groups"]) if keys["groups"] else 1,
            config.count(keys["kept"]) if keys["kept"] else 1,
            keys["groups"],
        )
        if self.correction_key:
            router = replace(router, correction=config.flag(self.correction_key, self.correction))
        if keys["normalize"]:
            router = replace(router, normalize=config.flag(keys["normalize"], self.normalize))
        mixture = self._mixture(router, replace(dense, width=width), shared_width)
        first = config.optional_count(keys["dense"], required=True) if keys["dense"] else 0
        sparse = [layer >= first for layer in range(layers)]
        if self.sparse_step:
            step, without = (config.count("decoder_sparse_step", 1), config.number_set("mlp_only_layers", layers))
            sparse = [layer not in without and (layer + 1) % step == 0 for layer in range(layers)]
        return [mixture if has_experts else dense for has_experts in sparse]

    def _router(
        self, config: Config, experts: int, chosen: int, scale: float, groups: int, kept: int, key: str
    ) -> Router:
        if groups > 1 and (experts % groups or kept > groups or chosen > kept * (experts // groups)):
            raise config.error(
                key, f"is {groups}, of which {kept} are used: {chosen} of {experts} experts do not fit into them"
            )
        return Router(
            experts,
            chosen,
            score=self.score,
            normalize=self.normalize,
            scale=scale,
            bias=self.bias,
            correction=self.correction,
            groups=groups,
            kept=kept,
            group_best=self.group_best,
        )

    def _mixture(self, router: Router, expert: FeedForward, shared_width: int) -> Mixture:
        shared = replace(expert, width=shared_width) if shared_width else None
        return Mixture(router, expert, shared, shared_gate=self.shared_gate and shared is not None)


def limit_experts(config: Config, key: str, experts: int, layers: int) -> None:
    """Refuse a total of experts that no real model has, because each expert takes memory for tensor names and slots."""
    if experts * layers > MAX_EXPERTS_OF_MODEL:
        raise config.error(
            key, f"is {experts:,} in {layers:,} layers; the limit for all layers is {MAX_EXPERTS_OF_MODEL:,} experts"
        )


def _experts(config: Config, optional: bool, count_optional: bool) -> int:
    """The number of experts E, from a key in ``EXPERTS``; 0 if experts are ``optional`` and the file has none."""
    # Files write false for "no experts".
    stated = [key for key in EXPERTS if config.value(key) is not None and config.value(key) is not False]
    if not stated and count_optional:
        return 0
    if not stated:
        first, *others = EXPERTS
        raise config.error(first, f"missing, and so are {' and '.join(others)}: one of them must be a whole number")
    for key in stated[1:]:
        config.check_equal(stated[0], config, key)
    return (
        config.optional_count(stated[0], limit=MAX_EXPERTS)
        if optional
        else int(config.count(stated[0], limit=MAX_EXPERTS))
    )
