"""DeepSeek V2 and V3 (DeepSeek-AI 2024): latent attention, and a mixture with groups of experts and shared experts."""

from __future__ import annotations

from collections.abc import Callable, Container

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import even, yarn_magnitude
from pellucid.model.positions import Pairing
from pellucid.model.spec import Attention, Latent, Mixture, ModelSpec, Norm, Router
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

METHODS = {"greedy": False, "group_limited_greedy": True}
"""``topk_method`` of V2 → True if groups of experts are chosen first."""


def _with_latent(spec: ModelSpec, latent: Latent, rotated: int, value_dim: int, factor: float) -> ModelSpec:
    head_dim = latent.plain_dim + rotated

    def change(_: int, attention: Attention) -> Attention:
        rotary = attention.rotary
        assert rotary is not None
        return replace(
            attention,
            latent=latent,
            kv_heads=1,
            head_dim=head_dim,
            value_dim=value_dim,
            scale=head_dim**-0.5 * factor,
            rotary=replace(rotary, dims=rotated),
        )

    return spec.change_attention(change)


def _change_router(spec: ModelSpec, change: Callable[[Router], Router]) -> ModelSpec:
    return spec.change_mixture(lambda _, mixture: replace(mixture, router=change(mixture.router)))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    heads, key = spec.attention.heads, "num_key_value_heads"
    if config.divisor(key, "num_attention_heads", heads) != heads:
        raise config.error(key, f"must be {heads}, like num_attention_heads, because each head has its own keys")
    config.table("rope_parameters").refuse("partial_rotary_factor", 1)
    config.refuse("mlp_bias", False)
    rotated = even(config, "qk_rope_head_dim", config.count("qk_rope_head_dim"))
    config.check_count("head_dim", rotated, "the value of qk_rope_head_dim, which it repeats in this family")
    latent = Latent(
        config.count("kv_lora_rank"),
        config.optional_count("q_lora_rank"),
        config.count("qk_nope_head_dim"),
        Norm("rms", 1e-6),  # transformers does not use the epsilon of the model here
    )
    rotary = spec.attention.rotary
    assert rotary is not None
    # A factor of the attention scores.
    factor = 1.0
    if rotary.scaling and rotary.scaling.kind == "yarn":
        table = config.table("rope_parameters")
        table = table if table.values else config.table("rope_scaling")
        factor = yarn_magnitude(rotary.scaling.factor, table.optional_number("mscale_all_dim")) ** 2
    return _with_latent(spec, latent, rotated, config.count("v_head_dim"), factor)


def _v2(config: Config, spec: ModelSpec) -> ModelSpec:
    config.flag("norm_topk_prob", False)  # transformers does not use it
    config.choice("scoring_func", {"softmax": True}, "softmax")
    spec = _from_config(config, spec)
    if not config.choice("topk_method", METHODS, "greedy"):
        for key in ("n_group", "topk_group"):
            config.optional_count(key)
        return spec
    groups, kept = config.count("n_group"), config.count("topk_group")

    def grouped(router: Router) -> Router:
        if router.experts % groups or kept > groups or router.chosen > kept * (router.experts // groups):
            raise config.error(
                "n_group",
                f"is {groups} with topk_group = {kept}: {router.chosen} of {router.experts} experts do not fit",
            )
        return replace(router, groups=groups, kept=kept)

    return _change_router(spec, grouped)


def _v3(config: Config, spec: ModelSpec) -> ModelSpec:
    config.choice("topk_method", {"noaux_tc": True}, "noaux_tc")
    config.choice("scoring_func", {"sigmoid": True}, "sigmoid")
    pairing: Pairing = "interleaved" if config.flag("rope_interleave", True) else "half"
    spec = _from_config(config, spec)
    return spec.change_attention(
        lambda _, attention: replace(attention, rotary=attention.rotary and replace(attention.rotary, pairing=pairing))
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    rotary = spec.attention.rotary
    assert rotary is not None
    # Older files state the lengths of a head's keys and values under these keys. Newer files state the lengths in the
    # cache under these keys, and the lengths of a head under the keys that end with "_mla".
    newer = "_mla" if config.has("attention.key_length_mla") else ""
    key, rotated = config.count(f"attention.key_length{newer}"), rotary.dims
    if key <= rotated:
        raise config.error(
            f"attention.key_length{newer}", f"is {key}; it must be above rope.dimension_count = {rotated}"
        )
    latent = Latent(
        config.count("attention.kv_lora_rank"),
        config.optional_count("attention.q_lora_rank"),
        key - rotated,
        spec.blocks[0].norm,
    )
    factor = 1.0
    if rotary.scaling and rotary.scaling.kind == "yarn":
        # The converter writes a tenth of mscale_all_dim. If the file has this key, llama.cpp scales no cosines and
        # sines.
        tenth = config.optional_number("rope.scaling.yarn_log_multiplier")
        factor = yarn_magnitude(rotary.scaling.factor, 10 * tenth) ** 2
        if tenth:
            plain = replace(rotary, scaling=replace(rotary.scaling, magnitude=1.0))
            spec = spec.with_attention(rotary=plain)
    if not config.optional_count("expert_gating_func"):  # V2 files that are older than this key
        spec = _change_router(spec, lambda router: replace(router, score="softmax"))
    return _with_latent(spec, latent, rotated, config.count(f"attention.value_length{newer}"), factor)


def _from_tensors(tensors: Container[str], spec: ModelSpec) -> ModelSpec:
    """Set ``correction`` of the routers. Only files of V3 have the tensors of the correction."""
    layers = (layer for layer, block in enumerate(spec.blocks) if isinstance(block.feedforward, Mixture))
    corrected = any(f"blk.{layer}.exp_probs_b.bias" in tensors for layer in layers)
    return _change_router(spec, lambda router: replace(router, correction=corrected))


_NAMES = replace(
    TRANSFORMERS
    | {
        "attention.q_down": "self_attn.q_a_proj",
        "attention.q_down_norm": "self_attn.q_a_layernorm",
        "attention.q,q_rotary": "self_attn.q_b_proj",
        "attention.q_direct,q_rotary_direct": "self_attn.q_proj",
        "attention.latent,k_rotary": "self_attn.kv_a_proj_with_mqa",
        "attention.latent_norm": "self_attn.kv_a_layernorm",
        "attention.k_up,v_up": "self_attn.kv_b_proj",
    },
    by_group=frozenset({"self_attn.q_b_proj", "self_attn.q_proj"}),
)
_GGUF = replace(
    GGUF
    | {
        "attention.q_down": "attn_q_a",
        "attention.q_down_norm": "attn_q_a_norm",
        "attention.q,q_rotary": "attn_q_b",
        "attention.q_direct,q_rotary_direct": "attn_q",
        "attention.latent,k_rotary": "attn_kv_a_mqa",
        "attention.latent_norm": "attn_kv_a_norm",
        "attention.k_up": "attn_k_b",
        "attention.v_up": "attn_v_b",
    },
    by_group=frozenset({"attn_q_b", "attn_q"}),
)
_KEYS = {
    "kv_heads": "",
    "head_dim": "",
    "feedforward_bias": "",
    "rank": "kv_lora_rank",
    "query_rank": "q_lora_rank",
    "plain_dim": "qk_nope_head_dim",
    "rotated_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}
_COUNTS = {"scale": "routed_scaling_factor", "shared": "n_shared_experts", "dense": "first_k_dense_replace"}
_DEEPSEEK = StandardDecoder(
    "deepseek_v3",
    architecture="deepseek2",
    pairing="interleaved",
    gguf_pairing="interleaved",
    mixture=StandardMixture(
        score="sigmoid",
        normalize=True,
        gguf_normalize=False,
        correction=True,
        group_best=2,
        keys={**_COUNTS, "groups": "n_group", "kept": "topk_group"},
    ),
    mtp_layers="num_nextn_predict_layers",
    keys=_KEYS,
    unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    names=_NAMES,
    gguf_names=_GGUF,
    config_change=_v3,
    gguf_change=_from_gguf,
    gguf_tensors_change=_from_tensors,
)
DEEPSEEK_V3 = _DEEPSEEK.family()
DEEPSEEK_V2 = replace(
    _DEEPSEEK,
    name="deepseek_v2",
    architecture=None,
    mixture=StandardMixture(keys={**_COUNTS, "normalize": ""}),
    config_change=_v2,
).family()
