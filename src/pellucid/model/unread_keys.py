"""Checks of the metadata keys that a model's family does not read.

Every key of ``config.json``, and every key of GGUF that begins with the name of the architecture, is one of five kinds:

    read        read by the reader of the family; ``Config`` records it
    harmless    the computation does not depend on it: token ids, dropout, training and saving of the model
    neutral     it can change the result, but has a value that does not, for example a soft-cap of null
    refused     it can change the result, has another value, and the family does not implement it: UnsupportedModel
    unknown     in no table: a one-line warning, unless its value is off (null, false, 0, empty)

The tables contain the keys of models like the models of ``families/``, from the configurations of transformers 5.24 and
the constants of gguf 0.19. Unknown keys are not refused, because training and conversion tools add keys that change
nothing. Tools add no keys to the tables that a family reads, for example ``rope_parameters``. An unknown key in these
tables is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pellucid.errors import UnsupportedModel, brief, shown
from pellucid.model.config import Config

Neutral: TypeAlias = Callable[[Any, Config], bool]
"""(value, the whole configuration) → True if the value has no effect."""


def only(*values: Any) -> Neutral:
    """Rule: these values are neutral."""
    return lambda value, _: isinstance(value, (bool, int, float, str, list, dict)) and value in values


def same_as(*keys: str) -> Neutral:
    """Rule: a value equal to the value of any of the ``keys`` is neutral."""
    return lambda value, config: any(_plain(value) and value == config.values.get(config.prefix + k) for k in keys)


def every(kind: Any) -> Neutral:
    """Rule: a list whose items all equal ``kind`` is neutral."""
    return lambda value, _: isinstance(value, list) and all(item == kind for item in value)


def either(*rules: Neutral) -> Neutral:
    """Rule: a value is neutral if it is neutral by any of the ``rules``."""
    return lambda value, config: any(rule(value, config) for rule in rules)


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _no_window(value: Any, config: Config) -> bool:
    """True if the window is switched off, or at least as long as the context."""
    get = config.values.get
    context = get("max_position_embeddings", get(config.prefix + "context_length"))
    wide = type(value) is int and type(context) is int and value >= context > 0
    return OFF(value, config) or wide or get("use_sliding_window") is False


def _no_pattern(value: Any, config: Config) -> bool:
    """True if the model has no window. The pattern of sliding layers then has no effect."""
    windows = (config.values.get(config.prefix + key) for key in ("sliding_window", "attention.sliding_window"))
    return all(window is None or _no_window(window, config) for window in windows)


def _head_dim(value: Any, config: Config) -> bool:
    """True if the value is D / H, the default."""
    width, heads = (config.values.get(key) for key in ("hidden_size", "num_attention_heads"))
    return type(value) is type(width) is type(heads) is int and value * heads == width


def _norm_kind(value: Any, config: Config) -> bool:
    """True if the name of a norm, such as "rmsnorm" or "layer_norm", agrees with the key of its epsilon."""
    name = value.lower() if isinstance(value, str) else ""
    rms = config.values.get("rms_norm_eps") is not None
    return ("rms" in name) == rms and ("rms" in name or "layer" in name)


def _gated_activation(value: Any, config: Config) -> bool:
    """True if the value is the activation function, or the name of its gated form (Falcon 3: "swiglu" with "silu")."""
    gated = {"swiglu": ("silu", "swish"), "geglu": ("gelu", "gelu_new", "gelu_pytorch_tanh")}
    stated = config.values.get("hidden_act")
    return isinstance(value, str) and (value == stated or stated in gated.get(value, ()))


def _rotary_base(value: Any, config: Config) -> bool:
    """True if the value is the base of the rotary positions."""
    table = config.values.get("rope_parameters")
    stated = table.get("rope_theta") if isinstance(table, Mapping) else None
    return _plain(value) and value == (config.values.get("rope_theta") if stated is None else stated)


OFF, ONE, TRUE, ABSENT = only(False, 0, "", [], {}), only(1), only(True), only()


def _table(groups: Mapping[Neutral, str]) -> dict[str, Neutral]:
    return {name: neutral for neutral, names in groups.items() for name in names.split()}


HARMLESS = re.compile(
    # names, and information about training and saving
    r"model_type|architectures|auto_map|torch_dtype|dtype|transformers_version|transformers\.js_config|(.*_)?version|"
    r"unsloth_fixed|is_llama_config|model_name|name_or_path|license|base_model.*|peft_.*|gradient_checkpointing|"
    r"directionality|pooler_\w+|matryoshka_dimensions|"  # BERT: the pooler, which is not run; shorter vectors
    r"sinusoidal_pos_embds|tie_weights_|"  # DistilBERT: how the table of positions was made; DistilBertForMaskedLM ties
    # adapters, whose family reads the keys (Jina Embeddings v3)
    r"lora_\w+|load_trained_adapters|task_instructions|"
    r"initializer_\w+|init_std|task_specific_params|finetuning_task|problem_type|id2label|label2id|num_labels|"
    r"_.*|"  # private attributes of a configuration class
    # training
    r"altup_coef_clip|\w*dropout\w*|\w*_pdrop|\w*layerdrop|\w*_coef(ficient)?|rescale_prenorm_residual|"
    r"aux_loss_alpha|seq_aux|neftune_noise_alpha|init_(config|method|device)|output_layer_init_method|\w+_init_scale|"
    r"(\w+_)?use_xavier_init|save_step|predict_special_tokens|generator_size|make_vocab_size_divisible_by|"
    # what a call returns, and how it is executed; pretraining_tp splits a matrix product into parts
    r"reorder_and_upcast_attn|use_cache|cache_implementation|return_dict\w*|use_return_dict|torchscript|"
    r"output_(hidden_states|attentions|past|router_logits)|"
    r"chunk_size_feed_forward|pretraining_tp|tf_legacy_loss|use_bfloat16|use_flash_attn\w*|use_flash_attention_2|"
    r"attn_implementation|deterministic_flash_attn|reference_compile|repad_logits_with_grad|sparse_pred\w*|"
    r"(scale_)?attention_softmax_in_fp32|masked_softmax_fusion|slow_but_exact|offset_alibi|skip_bias_add(_qkv)?|"
    r"ep_size|use_parallel_embedding|mamba_use_mlp|"
    r"use_memory_efficient_attention|unpad_inputs|num_logits_to_keep|classifier_\w+|summary_\w+|"
    # tokens (the tokenizer reads the keys that it needs), and defaults of generation
    r"(bos|eos|mask|pad)_token|\w+_token_ids?|\w+_token_index|tokenizer_(class|name)|prefix|suppress_tokens|begin_suppress_tokens|bad_words_ids|"
    r"max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_k|"
    r"force_bos_token_to_be_generated|top_p|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|"
    r"num_return_sequences|remove_invalid_values|exponential_decay_length_penalty|max_new_tokens|"
    # details of options (experts, windows by layer, other scalings): the key that switches the option on is refused
    r"num_experts_per_tok|top_k_experts|moe_(?!num_experts)\w+|norm_topk_prob|router_\w+|first_k_dense_replace|"
    r"decoder_sparse_step|"
    r"qk_head_dim|num_mtp_layers|mamba_expand|expand|n_group|topk_group|routed_scaling_factor|mamba_chunk_size|"
    r"chunk_size|use_mamba_kernels|mamba_ssm_cache_dtype|residual_in_fp32|time_step_(min|max|floor)|"
    r"time_step_rank|mlp_expansion_factor|"
    r"block_multiple_of|block_ffn_dim_multiplier|max_window_layers|sbert_ce_default_activation_function|"
    # lengths of training texts; the context is another key
    r"max_sequence_length|max_seq_len|seq_length|n_ctx|n_positions|initial_context_length|"
    r"model_max_length|original_max_position_embeddings|"
    # encoder-decoders: other values of keys that each class of transformers ignores, because it has one value
    r"add_final_layer_norm|normalize_before|normalize_embedding|static_position_embeddings|extra_pos_embeddings|"
    r"tie_word_embeddings|tie_embedding|is_decoder|bos_token_id|eos_token_id"
)
"""Harmless keys of config.json. Families that depend on keys about tied heads or decoders read these keys."""

CHANGING: dict[str, Neutral] = {
    **_table(
        {
            OFF: "attention_bias qkv_bias use_qkv_bias use_bias bias mlp_bias lm_head_bias norm_bias add_bias_linear "
            "use_qk_norm qk_norm qk_layernorm attn_logit_softcapping final_logit_softcapping clip_qkv "
            "use_sliding_window attention_chunk_size use_bidirectional_attention is_encoder_decoder "
            "add_cross_attention alibi use_alibi rope_interleaved rope_interleave no_rope_layer_interval "
            "use_parallel_residual parallel_attn apply_residual_connection_post_layernorm use_post_norm "
            "use_sandwich_norm use_attention_gate attn_temperature_tuning scale_embedding rescale_embeddings "
            "scale_attn_by_inverse_layer_idx num_experts num_local_experts n_routed_experts moe_num_experts "
            "n_shared_experts num_shared_experts q_lora_rank kv_lora_rank num_kv_shared_layers attention_k_eq_v "
            "hidden_size_per_layer_input relative_attention pruned_heads tie_encoder_decoder rope_scaling "
            "rope_parameters vision_config audio_config text_config compression_config gap_size net_structure_type "
            "num_memory_blocks layers_to_keep",
            ONE: "full_attn_mod interpolate_factor embedding_multiplier residual_multiplier logits_scaling "
            "logit_scale lm_head_multiplier "
            "key_multiplier attention_in_multiplier attention_out_multiplier scale_emb "
            "rope_ratio num_hidden_groups down_scale_factor",
            TRUE: "is_causal scale_attn_weights rotary use_pos_enc block_use_swiglu use_gated_activation "
            "use_parallel_block use_embedding_sharing",
            ABSENT: "attention_multiplier attn_scale query_pre_attn_scalar scale_depth dim_model_base rotary_dim "
            "rope_local_base_freq hidden_activation qk_rope_head_dim "
            "qk_nope_head_dim position_bias_num_buckets relative_attention_num_buckets type_vocab_size",
        }
    ),
    "hidden_act": same_as("hidden_activation"),
    **dict.fromkeys(("activation", "activation_function"), _gated_activation),
    "rope_theta": same_as("rotary_emb_base"),
    **dict.fromkeys(("norm_type", "normalization_function"), _norm_kind),
    "mlp_type": only("default"),
    "order_of_interleaved_layers": only("local_attn_first"),
    "partial_rotary_factor": either(ONE, same_as("rotary_pct")),
    "rotary_pct": either(ONE, same_as("partial_rotary_factor")),
    "theta": _rotary_base,
    "rms_norm_eps": same_as("layer_norm_eps", "layer_norm_epsilon"),
    "layer_norm_eps": same_as("rms_norm_eps", "norm_eps"),
    **dict.fromkeys(("layer_norm_epsilon", "norm_eps"), same_as("rms_norm_eps", "layer_norm_eps")),
    "block_norm_eps": same_as("norm_eps"),
    **dict.fromkeys(("embedding_size", "block_dim", "conv_dim", "conv_dim_out"), same_as("hidden_size")),
    "num_key_value_heads": same_as("num_attention_heads"),
    "num_query_groups": same_as("num_key_value_heads"),
    "num_heads": same_as("num_attention_heads"),
    "num_hidden_layers": same_as("encoder_layers", "decoder_layers"),
    "experts_per_token": same_as("num_experts_per_tok"),
    "head_dim": _head_dim,
    "v_head_dim": either(same_as("head_dim"), _head_dim),
    "position_embedding_type": only("rope", "rotary"),
    "attention_type": only("original_full"),
    "sliding_window": _no_window,
    "sliding_window_pattern": _no_pattern,
    "layer_types": every("full_attention"),
    "mlp_layer_types": every("dense"),
    "no_rope_layers": every(1),
}  # fmt: skip
"""Keys of config.json that can change the result, and their neutral values. Null is always neutral."""

IN_ROPE: dict[str, Neutral] = {
    "factor": ONE,
    **dict.fromkeys(("attention_factor", "attn_factor", "extrapolation_factor"), ONE),
    # True if the model was trained with the scaling (YaRN's own files). It changes no angle.
    "finetuned": lambda value, _: True,
    "partial_rotary_factor": ONE,
    # The scalings that depend on this key read it.
    "original_max_position_embeddings": lambda value, _: True,
    # The parts of image positions: in a text, all three numbers of a position are equal.
    "mrope_section": lambda value, _: True,
    "mrope_interleaved": lambda value, _: True,
}
"""Keys of the tables of rotary parameters, and their neutral values. Other keys are refused."""

GGUF_HARMLESS = re.compile(
    r"tensor_data_layout|rope\.scaling\.(original_context_length|finetuned|yarn_\w+)|interleave_moe_layer_step|"
    r"expert_(used_count|feed_forward_length|shared_feed_forward_length|weights_scale|weights_norm|gating_func|"
    r"group_count|group_used_count)|decoder_start_token_id|leading_dense_block_count|n_deepstack_layers|"
    r"decision\.(type|max_head_tokens|temperature\..+)"
)
"""Harmless keys of GGUF, without the architecture. Keys about experts have no effect without experts. Keys about
decisions are read when questions are asked (``decide/labels.py``)."""

GGUF_CHANGING: dict[str, Neutral] = {
    **_table(
        {
            OFF: "expert_count expert_shared_count use_parallel_residual pooling_type attn_logit_softcapping "
            "final_logit_softcapping router_logit_softcapping attention.max_alibi_bias attention.clamp_kqv "
            "attention.scale attention.q_lora_rank attention.kv_lora_rank attention.shared_kv_layers swin_norm "
            "attention.temperature_length attention.temperature_scale embedding_length_per_layer_input "
            "full_attention_interval activation_sparsity_scale nextn_predict_layers",
            either(ONE, OFF): "logit_scale residual_scale embedding_scale attention.output_scale "
            "rope.scaling.attn_factor rope.scaling.alpha",
            TRUE: "attention.causal",
            ABSENT: "attention.layer_norm_epsilon attention.group_norm_epsilon attention.group_norm_groups "
            "attention.relative_buckets_count attention.key_length_mla attention.value_length_mla "
            "rope.freq_base_swa rope.local.freq_base",
        }
    ),
    "attention.layer_norm_rms_epsilon": same_as("attention.layer_norm_epsilon"),
    "attention.sliding_window": _no_window,
    "attention.sliding_window_pattern": _no_pattern,
    "attention.key_length_swa": same_as("attention.key_length"),
    "attention.value_length_swa": same_as("attention.value_length"),
    "rope.dimension_sections": lambda value, _: True,  # the parts of image positions
    "rope.global.freq_base": same_as("rope.freq_base"),
    "rope.dimension_count_swa": same_as("rope.dimension_count"),
    "embedding_length_out": same_as("embedding_length"),
}
"""Keys of GGUF, without the architecture, that can change the result, and their neutral values."""


def check_unread(config: Config, prefix: str = "") -> None:
    """Check the keys that no reader read, in GGUF only keys with ``prefix``, and warn about unknown keys.

    Raises:
        UnsupportedModel: a key changes the result.
    """
    architecture, unknown = config.with_prefix(prefix), []
    harmless, changing = (GGUF_HARMLESS, GGUF_CHANGING) if prefix else (HARMLESS, CHANGING)
    for full, value in config.values.items():
        key = full[len(prefix) :]
        if not full.startswith(prefix) or value is None:
            continue
        if config.name(full) in config.read:
            if isinstance(value, Mapping):
                _check_table(config.table(full), architecture)
        elif key in changing:
            if not changing[key](value, architecture):
                raise _refused(config, full, value)
        elif not harmless.fullmatch(key) and not OFF(value, architecture):
            unknown.append(config.name(full))
    if unknown:
        more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
        warnings.warn(
            f"{config.path.name}: unknown keys, which are not used: {', '.join(map(shown, unknown[:5]))}{more}; if one "
            "of them affects the computation, the results are wrong",
            stacklevel=2,
        )


def _check_table(table: Config, config: Config) -> None:
    for key, value in table.values.items():
        if value is None or HARMLESS.fullmatch(key):
            continue
        if table.name(key) in table.read:
            if isinstance(value, Mapping):
                _check_table(table.table(key), config)
        elif not (key in IN_ROPE and IN_ROPE[key](value, config)):
            raise _refused(table, key, value)


def _refused(config: Config, key: str, value: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"{config.path.name}: {shown(config.name(key))} = {brief(value)} is not supported, and would change the answers"
    )
