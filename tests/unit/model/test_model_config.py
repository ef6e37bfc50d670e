"""Each invalid configuration raises a Pellucid error of one line that names the key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.metadata import GGUF, Metadata
from support.tiny import DECODERS, LLAMA_GGUF, LLAMA_GGUF_SHAPES, OF_FAMILY, TINY, write_llama_gguf

from pellucid.errors import CacheFull, FileFormatError, PellucidError, UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.family import family_of
from pellucid.model.slot_reader import SlotReader
from pellucid.runtime.cache import KVCache
from pellucid.runtime.cache_layout import LayerShape
from pellucid.weights.open import open_checkpoint

HAS_DEFAULT = {
    *("head_dim", "num_key_value_heads", "type_vocab_size", "falcon:ffn_hidden_size", "falcon:num_kv_heads"),
    *("gptj:rotary_dim", "mistral:sliding_window", "mpt:expansion_ratio", "opt:word_embed_proj_dim"),
    *("smollm3:no_rope_layer_interval", "starcoder2:sliding_window", "mixtral:sliding_window"),
    *(f"gemma3:{key}" for key in ("num_attention_heads", "max_position_embeddings", "vocab_size")),
    *("decoder_sparse_step", "num_nextn_predict_layers", "falcon_h1:mamba_d_ssm", "lfm2:block_multiple_of"),
    *("deepseek_v2:q_lora_rank", "deepseek_v3:q_lora_rank"),
    *("gemma4:num_kv_shared_layers", "gemma4:vocab_size_per_layer_input"),
    *("llama4:attention_chunk_size", "llama4:floor_scale", "llama4:interleave_moe_layer_step"),
    *("max_window_layers", "falcon:max_position_embeddings", "gemma3n:altup_active_idx"),
    *("deberta:max_position_embeddings", "deberta:max_relative_positions", "deberta:pooler_hidden_size"),
    *("modernbert:local_attention", "modernbert:max_position_embeddings"),
    *("albert:inner_group_num", "albert:num_hidden_groups", "mpnet:relative_attention_num_buckets"),
    *("roberta:pad_token_id", "xlm_roberta_xl:pad_token_id", "ernie:task_type_vocab_size"),
    *("gemma3n:altup_num_inputs", "gemma3n:num_kv_shared_layers", "gemma3n:vocab_size_per_layer_input"),
    *("llama4:no_rope_layer_interval", "mamba_d_head", "n_shared_experts", "nemotron_h:n_routed_experts"),
}
MAY_BE_NONE = {
    *(f"{family}:sliding_window" for family in ("mistral", "mixtral", "starcoder2")),
    *(
        *("roberta:pad_token_id", "xlm_roberta_xl:pad_token_id"),
        *(f"{family}:type_vocab_size" for family in ("deberta", "gte", "jina_embeddings_v3", "nomic_bert")),
        "deberta:max_relative_positions",
        "glm4_moe:first_k_dense_replace",
        "glm4_moe:n_shared_experts",
        "granitemoeshared:shared_intermediate_size",
        "qwen2_moe:shared_expert_intermediate_size",
        "glm4_moe:num_nextn_predict_layers",
        "qwen3_next:shared_expert_intermediate_size",
        "qwen3_5_moe:shared_expert_intermediate_size",
        "granitemoehybrid:num_local_experts",
        "lfm2_moe:num_dense_layers",
        "gemma4:hidden_size_per_layer_input",
        "gemma3n:altup_active_idx",
        "gemma3n:num_kv_shared_layers",
        *(f"{family}:max_window_layers" for family in ("qwen2", "qwen2_moe", "qwen3")),
        "llama4:num_local_experts",
        "llama4:interleave_moe_layer_step",
        "gemma4:num_kv_shared_layers",
        *(f"deepseek_v{n}:{key}" for n in (2, 3) for key in ("q_lora_rank", "n_shared_experts")),
        *(f"deepseek_v{n}:num_nextn_predict_layers" for n in (2, 3)),
        *(f"deepseek_v{n}:first_k_dense_replace" for n in (2, 3)),
        "nemotron_h:n_routed_experts",
        "nemotron_h:moe_shared_expert_intermediate_size",
        "nemotron_h:num_nextn_predict_layers",
    ),
}
MAY_BE_NEGATIVE = {"deberta:max_relative_positions"}
"""-1 stands for all positions."""
NOT_WHOLE = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")  # integers in the tiny files


def keys_read(family: str) -> tuple[list[str], list[str]]:
    """The keys of a tiny model's configuration that its family reads: integers, and other numbers."""
    checkpoint = Metadata.of(OF_FAMILY[family])
    config = Config(checkpoint.metadata, checkpoint.path)
    kind = config.text("model_type")  # Jina's BERT has the name of BERT
    reading = family_of(kind, "safetensors")
    assert reading
    reading.safetensors[kind](checkpoint, config)
    values = {key: checkpoint.metadata.get(key) for key in sorted(config.read)}
    whole = [key for key, value in values.items() if type(value) is int and key not in NOT_WHOLE]
    return whole, [key for key, value in values.items() if type(value) is float or key in NOT_WHOLE]


def activation_key(family: str) -> str:
    metadata = Metadata.of(OF_FAMILY[family]).metadata
    return next((key for key in ACTIVATION_KEYS if key in metadata), "")


ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "activation", "afn")
ROTATED = [name for name in OF_FAMILY if "rope_parameters" in Metadata.of(OF_FAMILY[name]).metadata]


def refused(checkpoint: Metadata, *words: str, kind: type[PellucidError] = FileFormatError) -> None:
    with pytest.raises(PellucidError) as caught:
        checkpoint.lower()
    message = str(caught.value)
    assert isinstance(caught.value, kind), message
    assert "\n" not in message
    assert len(message) < 1000
    for word in words:
        assert word in message


ALL_COUNTS = [(family, key) for family in OF_FAMILY for key in keys_read(family)[0]]
ALL_NUMBERS = [(family, key) for family in OF_FAMILY for key in keys_read(family)[1]]


@pytest.mark.parametrize(("family", "key"), [(f, k) for f, k in ALL_COUNTS if not {k, f"{f}:{k}"} & HAS_DEFAULT])
def test_missing_count(family: str, key: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    del checkpoint.metadata[key]
    refused(checkpoint, key, "missing")


@pytest.mark.parametrize(("family", "key"), ALL_COUNTS)
def test_count_that_is_none(family: str, key: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    for value in (0, -1, 1 << 40, 10**400, 1.5, float("nan"), "64", True, [64], {}, "x" * 9999):
        allowed = {0: MAY_BE_NONE, -1: MAY_BE_NEGATIVE}.get(value, ()) if type(value) is int else ()
        if f"{family}:{key}" not in allowed:
            checkpoint.metadata[key] = value
            refused(checkpoint, key)


@pytest.mark.parametrize(("family", "key"), ALL_NUMBERS)
def test_number_out_of_range(family: str, key: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    for value in (-1.0, -0.5, float("nan"), float("inf"), 1e300, 10**400, "1", True, []):
        checkpoint.metadata[key] = value
        refused(checkpoint, key)


@pytest.mark.parametrize("family", ROTATED)
def test_rotary_base_out_of_range(family: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    parameters = checkpoint.metadata["rope_parameters"]
    for value in (0, 1e-300, -1.0, float("nan"), float("inf"), 1e300, 10**400, "x", [1]):
        parameters.get("full_attention", parameters)["rope_theta"] = value
        refused(checkpoint, "rope_theta")


@pytest.mark.parametrize("family", [name for name in OF_FAMILY if activation_key(name)])
def test_unknown_activation_lists_the_known(family: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    checkpoint.metadata[activation_key(family)] = "swish\n2"
    known = Metadata.of(OF_FAMILY[family]).metadata[activation_key(family)]
    refused(checkpoint, activation_key(family), "swish", known, kind=UnsupportedModel)


@pytest.mark.parametrize("name", ["mamba", "", "x" * 9999, "a\nb"])
def test_unknown_architecture_says_where_the_known_are(name: str) -> None:
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.metadata["model_type"] = name
    refused(checkpoint, "`pellucid list --families` shows all", kind=UnsupportedModel)


@pytest.mark.parametrize("family", [name for name in OF_FAMILY if name in DECODERS])
def test_a_file_that_was_saved_without_its_head(family: str) -> None:
    """Tensor names lack their first part, as in the published files of GPT-2 and BLOOM."""
    checkpoint = Metadata.of(OF_FAMILY[family])
    model = checkpoint.read()
    base = model.sources("embed.weight")[0].tensor.partition(".")[0] + "."
    bare = checkpoint.changed()
    bare.tensors = {name.removeprefix(base): one for name, one in checkpoint.tensors.items()}
    again = bare.read()
    assert again.spec == model.spec
    for slot in model.slots:
        wanted = [replace(one, tensor=one.tensor.removeprefix(base)) for one in model.sources(slot)]
        assert list(again.sources(slot)) == wanted


def test_unknown_architecture_names_the_nearest() -> None:
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.metadata["model_type"] = "starcoder3"
    refused(checkpoint, "'starcoder3' is not supported", "the nearest name is starcoder2", kind=UnsupportedModel)


@pytest.mark.parametrize("value", [None, 3, ["llama"]])
def test_architecture_that_is_no_string(value: Any) -> None:
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.metadata["model_type"] = value
    refused(checkpoint, "model_type")


@pytest.mark.slow
@pytest.mark.parametrize("family", OF_FAMILY)
def test_any_tensor_missing_or_of_another_shape(family: str) -> None:
    for name in Metadata.of(OF_FAMILY[family]).tensors:
        if "pooler" in name:
            continue
        missing = Metadata.of(OF_FAMILY[family])
        tensor = missing.tensors.pop(name)
        refused(missing, name, "missing")
        for shape in ((), (0,), (*tensor.shape, 1), (tensor.shape[0] + 1, *tensor.shape[1:])):
            if shape == () and tensor.shape == (1,):
                continue  # a single number is valid too
            other = Metadata.of(OF_FAMILY[family])
            other.tensors[name] = replace(tensor, shape=shape)
            refused(other, name, kind=PellucidError)  # an extra row of a shared tensor is an unused row


@pytest.mark.parametrize("form", ["I64", "F64", "BOOL"])
def test_tensor_of_a_type_that_no_kernel_takes(form: str) -> None:
    checkpoint = Metadata.of(TINY["llama"])
    name = "model.layers.0.mlp.up_proj.weight"
    checkpoint.tensors[name] = replace(checkpoint.tensors[name], format=form)
    refused(checkpoint, name, form, "Q4_K", kind=UnsupportedModel)


@pytest.mark.parametrize("family", [family for family, key in ALL_COUNTS if key == "num_key_value_heads"])
def test_heads_that_their_key_value_heads_do_not_divide(family: str) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    checkpoint.metadata["num_key_value_heads"] = 3
    refused(checkpoint, "num_key_value_heads", "3", str(checkpoint.metadata["num_attention_heads"]))


@pytest.mark.parametrize(("family", "heads"), [("llama", 3), ("llama", 128), ("bert", 3), ("bert", 128)])
def test_heads_that_do_not_divide_the_width(family: str, heads: int) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    checkpoint.metadata.pop("head_dim", None)
    checkpoint.metadata["num_attention_heads"] = heads
    refused(checkpoint, "num_attention_heads", str(heads), "64")


@pytest.mark.parametrize(
    "value", [3, "sliding_attention", {}, ["sliding_attention"], [[]] * 6, ["global"] * 6, [None] * 6]
)
def test_layer_types_that_are_none(value: Any) -> None:
    checkpoint = Metadata.of(TINY["gemma3"])
    checkpoint.metadata["layer_types"] = value
    refused(checkpoint, "layer_types", "sliding_attention")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("factor", 0),
        ("factor", "2"),
        ("low_freq_factor", float("nan")),
        ("high_freq_factor", 0.5),
        ("original_max_position_embeddings", 0.5),
        ("rope_type", "spiral"),
        ("rope_type", 7),
    ],
)
def test_rotary_scaling_that_is_wrong(key: str, value: Any) -> None:
    checkpoint = Metadata.of(TINY["llama-rope3"])
    checkpoint.metadata["rope_parameters"][key] = value
    refused(checkpoint, key, kind=PellucidError)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "attention_multiplier", 0.5),
        ("gemma4", "use_bidirectional_attention", "all"),
        ("bert", "position_embedding_type", "relative_key\n" * 99),
        ("bert", "is_decoder", True),
    ],
)
def test_what_is_not_implemented_is_never_ignored(family: str, key: str, value: Any) -> None:
    checkpoint = Metadata.of(OF_FAMILY[family])
    checkpoint.metadata[key] = value
    refused(checkpoint, key, kind=UnsupportedModel)


@pytest.mark.parametrize("name", TINY)
def test_more_layers_than_the_configuration_says(name: str) -> None:
    checkpoint = Metadata.of(TINY[name])
    name = checkpoint.read().layer_count
    *table, key = name.split(".")
    metadata = checkpoint.metadata[table[0]] if table else checkpoint.metadata
    if isinstance(metadata[key], list):  # a list of the kinds of the layers
        layers = len(metadata[key])
        metadata[key].pop()
    else:
        layers = metadata[key]
        metadata[key] = layers - 1
    lists = ("layer_types", "no_rope_layers", "intermediate_size", "activation_sparsity_pattern")
    for each in lists:
        if isinstance(metadata.get(each), list):
            metadata[each].pop()
    if metadata.get("num_kv_shared_layers"):
        metadata["num_kv_shared_layers"] -= 1
    refused(checkpoint, f"{name}: is {layers - 1}, but the file has tensors of {layers} layers")


def test_more_layers_than_a_gguf_says(tmp_path: Path) -> None:
    more = {n.replace("blk.0.", "blk.1."): s for n, s in LLAMA_GGUF_SHAPES.items() if n.startswith("blk.0.")}
    path = write_llama_gguf(tmp_path / "t.gguf", {**LLAMA_GGUF, "llama.block_count": 2}, {**LLAMA_GGUF_SHAPES, **more})
    checkpoint = Metadata.of(path)
    checkpoint.metadata["llama.block_count"] = 1
    refused(checkpoint, "llama.block_count: is 1, but the file has tensors of 2 layers")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("value", "named"),
    [({"quant_method": "bitsandbytes", "load_in_4bit": True}, "with bitsandbytes ("), ("fp8", "fp8")],
)
def test_quantised_folder(name: str, value: Any, named: str) -> None:
    checkpoint = Metadata.of(TINY[name])
    checkpoint.metadata["quantization_config"] = value
    refused(checkpoint, "quantization_config", named, kind=UnsupportedModel)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [-2, 1 << 20, "2", True, 1.0, [2, 1 << 20], [[2]], {}])
def test_token_id_outside_the_vocabulary(key: str, value: Any) -> None:
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.metadata[key] = value
    refused(checkpoint, key, "it must be a token id, from 0 to")
    for fine in (None, 0, checkpoint.metadata["vocab_size"] - 1, [0, 1], []):
        checkpoint.metadata[key] = fine
        checkpoint.lower()


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 300),
    st.sampled_from([2**31, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=8),
)
ANY_VALUE = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def places(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@settings(max_examples=40)
@given(data=st.data())
def test_any_change_of_a_configuration_loads_or_is_one_of_our_errors(name: str, data: st.DataObject) -> None:
    checkpoint = Metadata.of(TINY[name])
    place = data.draw(st.sampled_from(places(checkpoint.metadata)))
    inner: Any = checkpoint.metadata
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(ANY_VALUE)
    try:
        checkpoint.lower()
    except PellucidError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Metadata]:
    path = write_llama_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return lambda: Metadata.of(path)


@pytest.mark.parametrize(
    "key", [k for k in LLAMA_GGUF if (k.count(".") > 1 and "head_count_kv" not in k) or "count" in k]
)
@pytest.mark.parametrize("value", [0, -1, 2**62, 1e300, float("nan"), "x", [1, 2], list(range(5000))])
def test_gguf_metadata_out_of_range(gguf_model: Callable[[], Metadata], key: str, value: Any) -> None:
    checkpoint = gguf_model()
    checkpoint.metadata[key] = np.array(value) if isinstance(value, list) else value
    refused(checkpoint, key)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("general.architecture", "mamba", UnsupportedModel),
        ("general.architecture", "whisper", UnsupportedModel),
        ("general.architecture", 3, FileFormatError),
        ("llama.rope.dimension_count", 32, FileFormatError),
        ("llama.rope.dimension_count", 15, FileFormatError),
        ("llama.rope.scaling.type", "spiral", UnsupportedModel),
        ("llama.expert_count", 8, FileFormatError),
        ("llama.expert_count", "array", FileFormatError),
        ("llama.attention.value_length", 32, FileFormatError),
        ("llama.attention.key_length", 8, PellucidError),
    ],
)
def test_gguf_metadata_that_is_not_supported(
    gguf_model: Callable[[], Metadata], key: str, value: Any, kind: type[PellucidError]
) -> None:
    checkpoint = gguf_model()
    checkpoint.metadata[key] = np.arange(9) if value == "array" else value
    refused(checkpoint, kind=kind)


@pytest.mark.parametrize("shape", [(), (3,), (64, 16), (64, 32, 1)])
def test_gguf_embedding_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_llama_gguf(tmp_path / "t.gguf", shapes={**LLAMA_GGUF_SHAPES, "token_embd.weight": (64, 32)})
    checkpoint = Metadata.of(path)
    embedding = checkpoint.tensors["token_embd.weight"]
    checkpoint.tensors["token_embd.weight"] = replace(embedding, shape=shape)
    refused(checkpoint, "token_embd.weight", "shape")


def test_context_that_no_machine_has_is_an_error_not_a_crash() -> None:
    with pytest.raises(CacheFull, match="smaller context"):
        KVCache([LayerShape(1 << 16, 1 << 12, 1 << 12)] * 1000, [1 << 18])


def test_folder_without_config(tmp_path: Path) -> None:
    shutil.copy(TINY["llama"] / "model.safetensors", tmp_path)
    with pytest.raises(FileFormatError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("further", [2, 5])
def test_no_layer_is_left_of_those_that_predict_further_tokens(further: int) -> None:
    checkpoint = GGUF["glm4moe"]()
    checkpoint.metadata["glm4moe.block_count"] = 2
    checkpoint.metadata["glm4moe.nextn_predict_layers"] = further
    refused(checkpoint, "glm4moe.nextn_predict_layers", str(further))


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    checkpoint, name = Metadata.of(TINY["glm4_moe"]), "model.layers.3"
    norm = checkpoint.tensors["model.norm.weight"]
    for part in ("eh_proj.weight", "input_layernorm.weight"):
        checkpoint.tensors[f"{name}.{part}"] = replace(norm, name=f"{name}.{part}")
    with pytest.warns(UserWarning, match=r"2 tensors of parts .* are not read: model\.layers\.3\."):
        assert len(checkpoint.read().spec.blocks) == 3
    checkpoint.metadata["num_nextn_predict_layers"] = 0
    refused(checkpoint, "num_hidden_layers")


def test_a_scalar_is_no_vector_of_one_expert() -> None:
    checkpoint = Metadata.of(TINY["gpt_oss"])
    checkpoint.metadata |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}
    name = "model.layers.0.self_attn.sinks"
    checkpoint.tensors[name] = replace(checkpoint.tensors[name], shape=())
    refused(checkpoint, "model.layers.0.self_attn")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mixtral", {"num_local_experts": 4096, "num_hidden_layers": 1000}, ("4,096", "1,000")),
        ("mixtral", {"num_local_experts": 5000}, ("num_local_experts", "5000")),
        ("glm4_moe", {"n_group": 4}, ("n_group", "4")),
        (
            "phi3-long",
            {"rope_parameters": {**Metadata.of(TINY["phi3-long"]).metadata["rope_parameters"], "short_factor": []}},
            ("the file has 0 numbers",),
        ),
    ],
)
def test_experts_and_factors_out_of_range(family: str, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    checkpoint = Metadata.of(TINY[family])
    checkpoint.metadata |= changes
    refused(checkpoint, *words, kind=PellucidError)


def test_the_keys_that_published_files_of_pythia_have() -> None:
    checkpoint = Metadata.of(TINY["gpt_neox"])
    before = checkpoint.read().spec
    part = checkpoint.metadata.pop("rope_parameters").get("partial_rotary_factor", 0.25)
    checkpoint.metadata |= {"rotary_pct": part, "rotary_emb_base": 10_000}
    assert checkpoint.read().spec == before
    checkpoint.metadata["rotary_emb_base"] = 500
    assert checkpoint.read().spec.attention.rotary != before.attention.rotary


def test_fused_experts_are_their_rows() -> None:
    """Qwen 3.5's published files hold all experts of a layer in two tensors."""
    checkpoint = Metadata.of(TINY["qwen3_5_moe"])
    before = checkpoint.read()
    experts, width, inner = 6, 64, 24
    for layer in range(len(before.spec.blocks)):
        at = f"model.layers.{layer}.mlp.experts"
        some = checkpoint.tensors[f"{at}.0.up_proj.weight"]
        for name in [name for name in checkpoint.tensors if name.startswith(at)]:
            del checkpoint.tensors[name]
        for part, shape in (("gate_up", (experts, 2 * inner, width)), ("down", (experts, width, inner))):
            name = f"{at}.{part}_proj"
            checkpoint.tensors[name] = replace(some, name=name, shape=shape)
    model = checkpoint.read()
    assert model.spec == before.spec
    gates = model.sources("blocks.0.feedforward.experts.gate.weight")
    ups = model.sources("blocks.0.feedforward.experts.up.weight")
    assert [one.rows for one in gates[:2]] == [(0, inner), (2 * inner, 3 * inner)]
    assert [one.rows for one in ups[:2]] == [(inner, 2 * inner), (3 * inner, 4 * inner)]


def test_sparsities_of_a_gguf_are_quantiles() -> None:
    checkpoint = GGUF["gemma3n"]()
    layers, key = checkpoint.metadata["gemma3n.block_count"], "gemma3n.activation_sparsity_scale"
    assert layers == 2
    for stated, wanted in (([-np.inf, 1.6448536], [0.0, 0.95]), ([8.0, -8.0], [1.0, 0.0])):
        checkpoint.metadata[key] = stated
        found = [block.feedforward.sparsity for block in checkpoint.read().spec.blocks]
        assert found == pytest.approx(wanted, abs=1e-6)
        checkpoint.lower()
    for value in (8.4, 39.0, -9.0, np.nan, np.inf, True, "1"):
        checkpoint.metadata[key] = [value] * layers
        refused(checkpoint, key, "from -8 to 8")


def test_a_file_without_any_block() -> None:
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.tensors = {name: one for name, one in checkpoint.tensors.items() if ".layers." not in name}
    refused(checkpoint, "model.layers.0.", "missing")


def test_pairs_of_rotary_positions_that_only_cohere_has() -> None:
    for family in ("llama", "mistral"):
        checkpoint = Metadata.of(OF_FAMILY[family]).changed(position_embedding_type="rope_gptj")
        refused(checkpoint, "position_embedding_type", kind=UnsupportedModel)
    Metadata.of(TINY["cohere2"]).changed(position_embedding_type="rope_gptj").lower()
    refused(Metadata.of(TINY["cohere2"]).changed(position_embedding_type="alibi"), "alibi", kind=UnsupportedModel)


def test_chunks_of_a_gguf_are_8192_tokens() -> None:
    checkpoint, key = GGUF["llama4"](), "llama4.attention.sliding_window"
    for value, wanted in ((8192, {0, 8192}), (0, {0})):
        checkpoint.metadata[key] = value
        assert {one.window for one in checkpoint.read().spec.attentions} <= wanted
    checkpoint.metadata[key] = 4096
    refused(checkpoint, key, "4,096", "8,192")


def test_an_error_has_the_name_that_the_file_has() -> None:
    checkpoint = Metadata.of(TINY["gpt2"])
    width = checkpoint.metadata.pop("n_embd")
    assert checkpoint.changed(hidden_size=width).read().spec.embedding.width == width
    refused(checkpoint.changed(hidden_size="wide"), "hidden_size: is 'wide'")
    refused(checkpoint.changed(hidden_size=width, n_embd=width + 1), "hidden_size", "n_embd")


def test_windows_that_nothing_switches_on() -> None:
    checkpoint = Metadata.of(TINY["qwen2-window"]).changed(use_sliding_window=False)
    refused(checkpoint, "layer_types", "set use_sliding_window to true")


def test_limits_of_a_step_are_shown() -> None:
    checkpoint = Metadata.of(TINY["nemotron_h"]).changed(time_step_limit=[0.0, 0.5])
    refused(checkpoint, "time_step_limit is [0.0, 0.5]", kind=UnsupportedModel)


def test_biases_in_blocks_cannot_alternate() -> None:
    """gpt-oss's biases of gates and ups are every second value."""
    checkpoint = Metadata.of(TINY["gpt_oss"])
    at = "model.layers.0.mlp.experts.gate_up_proj_bias"
    checkpoint.tensors[at] = replace(checkpoint.tensors[at], format="Q8_0")
    sources = checkpoint.read().sources("blocks.0.feedforward.experts.gate.bias")
    with pytest.raises(UnsupportedModel, match="cannot be cut"):
        SlotReader(checkpoint, sources)
