"""Jina's encoders: Jina BERT, Jina Embeddings 3."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.errors import FileFormatError, brief, shown
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import GGUF_KEYS, gguf_body, gguf_model, gguf_names
from pellucid.model.metadata import rope_parameters
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, encoder_heads, fill_head
from pellucid.model.outputs import HiddenActivation
from pellucid.model.positions import Rotary
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.standard_encoder import ACTIVATIONS, bidirectional, encoder_model, head_sizes
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Adapter, Model, Slot
from pellucid.weights.checkpoint import Checkpoint

# Jina BERT (Günther et al. 2023, Jina Embeddings 2): BERT with ALiBi to both sides and a gated feed-forward.
#
# Its config.json states the architecture "bert" with ``position_embedding_type`` "alibi", because its code is on the
# hub. The code model (jina-embeddings-v2-base-code) also has query and key norms, and a second norm after attention.

NAMES = TensorNames(
    {
        "model.embed": "bert.embeddings.word_embeddings",
        "model.embed.types": "bert.embeddings.token_type_embeddings",
        "model.embed.norm": "bert.embeddings.LayerNorm",
        "attention.q": "attention.self.query",
        "attention.k": "attention.self.key",
        "attention.v": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention.norm": "attention.output.LayerNorm",
        "feedforward.gate,up": "mlp.gated_layers",
        "feedforward.down": "mlp.wo",
        "feedforward.norm": "mlp.layernorm",
    },
    "bert.encoder.layer",
)
CODE_NAMES = replace(
    NAMES
    | {
        "attention.q_norm": "attention.self.layer_norm_q",
        "attention.k_norm": "attention.self.layer_norm_k",
        "attention.post_norm": "attention.output.LayerNorm",
        "attention.norm": "layer_norm_1",
        "feedforward.gate,up": "mlp.up_gated_layer",
        "feedforward.down": "mlp.down_layer",
        "feedforward.norm": "layer_norm_2",
    },
    up_first=True,
)
"""The names of the code model, whose up-projection precedes the gate."""


def _code_model(spec: ModelSpec) -> ModelSpec:
    norm = spec.blocks[0].norm
    return spec.with_attention(qk_norm=norm, qk_norm_whole=True).with_blocks(attention_post_norm=True)


HIDDEN: Mapping[str, HiddenActivation] = {"gelu": "gelu", "relu": "relu"}
"""Activation functions of feed-forwards without a gate, and of heads."""


def from_config(checkpoint: Checkpoint, config: Config, heads: Heads) -> Model:
    """Read ``config.json`` of JinaBertModel. ``heads`` are the heads of BERT."""
    for key in ("is_decoder", "add_cross_attention"):
        config.refuse(key, False)
    config.refuse("position_embedding_type", "alibi")
    config.refuse("emb_pooler", "mean")
    activations: dict[str, HiddenActivation] = {"geglu": "gelu", "reglu": "relu"}
    activation = config.choice("feed_forward_type", activations, "geglu")
    hidden = config.choice("hidden_act", HIDDEN, "gelu")
    norm = Norm("layer", config.number("layer_norm_eps", 1e-12))
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=True, output_bias=True)
    attention = bidirectional(config, alibi=True, bias=True, output_bias=True)
    body = ModelSpec(
        "jina_bert",
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        Embedding(
            config.count("vocab_size"), config.count("hidden_size"), types=config.count("type_vocab_size", 2), norm=norm
        ),
        (Block(attention, feedforward, norm, "post"),) * layers,
    )
    names = NAMES
    if any(name.endswith("layer.0.layer_norm_1.weight") for name in checkpoint.tensors):
        body, names = _code_model(body), CODE_NAMES
    return encoder_model(checkpoint, config, body, names, heads, hidden)


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture jina-bert-v2. Older files have separate gates."""
    own = config.with_prefix("jina-bert-v2.")
    own.refuse("attention.max_alibi_bias", 8)
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "jina_bert", "gelu", names, pairing=None).with_attention(alibi=True)
    if "blk.0.ffn_gate.weight" not in checkpoint.tensors:
        names |= {"feedforward.gate,up": "ffn_up"}
    if "blk.0.attn_norm_2.weight" in checkpoint.tensors:
        more = {"attention.post_norm": "attn_output_norm", "attention.norm": "attn_norm_2"}
        body, names = _code_model(body), replace(names | more, up_first=True)
    return gguf_model(checkpoint, own, body, names)


JINA_BERT = Family(
    "jina_bert",
    gguf={"jina-bert-v2": from_gguf},
    biases=("token_types.weight", *(f"blk.0.{name}.bias" for name in ("attn_q", "attn_output", "ffn_down"))),
    gguf_usual=GGUF_KEYS,
)


# Jina Embeddings v3 (Sturua et al. 2024): XLM-RoBERTa with rotary positions instead of learned positions.
#
# Published files also have low-rank adapters (LoRA) of five tasks, such as "retrieval.query". All matrices of the body
# and the tables of the embedding have adapters. One adapter is merged into the weights when they are loaded:
#
#     W + lora_alpha / lora_rank * B A     (of a table: A B)
#
# Its instruction is put before each text, as ``encode(task=...)`` of the model's own code does. Without an adapter, the
# base model runs, and a warning names the adapters.
# Source: modeling_lora.py in https://huggingface.co/jinaai/xlm-roberta-flash-implementation

BASE, HUB_BASE = 20_000.0, 10_000.0
JINA_EMBEDDINGS_V3_NAMES = TensorNames(
    {
        "model.embed": "roberta.embeddings.word_embeddings",
        "model.embed.types": "roberta.embeddings.token_type_embeddings",
        "model.embed.norm": "roberta.emb_ln",
        "attention.q,k,v": "mixer.Wqkv",
        "attention.output": "mixer.out_proj",
        "attention.norm": "norm1",
        "feedforward.up": "mlp.fc1",
        "feedforward.down": "mlp.fc2",
        "feedforward.norm": "norm2",
    },
    "roberta.encoder.layers",
)
HEADS = encoder_heads(
    TaskHead((HeadLayer("classifier.dense", activation="tanh"), HeadLayer("classifier.out_proj", "labels")), "cls"),
    fill_head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", "gelu"),
)
"""The heads of RoBERTa."""
ADAPTER = re.compile(r".+\.parametrizations\.weight\.0\.lora_[AB]")
TABLES = ("embed.weight", "embed.types.weight")
ADAPTED = ".parametrizations.weight.original"
"""The name of a matrix that has adapters ends with this, instead of ".weight"."""


def jina_embeddings_v3_from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of JinaEmbeddingsV3Model or, of the code on the hub, of XLMRobertaLoRA."""
    config.refuse("position_embedding_type", "rotary")
    config.refuse("use_reg_tokens", False)
    config.refuse("truncate_dim")
    width, (_, head_dim) = config.count("hidden_size"), head_sizes(config)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    of_hub = config.has("position_embedding_type")
    base, scaling = rope_parameters(config, base_key="rotary_emb_base", default=HUB_BASE if of_hub else BASE)
    norm = Norm("layer", config.number("layer_norm_eps", 1e-5))
    activation = config.choice("hidden_act", ACTIVATIONS, "gelu")
    attention = bidirectional(config, rotary=Rotary(base, head_dim, "half", scaling), bias=True, output_bias=True)
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=False, bias=True)
    body = ModelSpec(
        "jina_embeddings_v3",
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        Embedding(config.count("vocab_size"), width, types=config.optional_count("type_vocab_size"), norm=norm),
        (Block(attention, feedforward, norm, "post"),) * layers,
    )
    names = JINA_EMBEDDINGS_V3_NAMES if not any(name.startswith("embeddings.") for name in checkpoint.tensors) else BARE
    model = encoder_model(checkpoint, config, body, names, HEADS, activation)
    has_adapters = any(name.endswith(ADAPTED) for name in checkpoint.tensors)
    return _with_adapter(checkpoint, config, model) if has_adapters else model


BARE = replace(
    JINA_EMBEDDINGS_V3_NAMES,
    names={place: name.removeprefix("roberta.") for place, name in JINA_EMBEDDINGS_V3_NAMES.names.items()},
    prefix="encoder.layers",
)
"""The names in a file without a head. `TensorNames.found_in` does not find the embedding of a file with adapters."""


def _with_adapter(checkpoint: Checkpoint, config: Config, model: Model) -> Model:
    """The model with the adapter that the user asks for. Without an adapter, a warning names the adapters.

    Raises:
        FileFormatError: the names, the instructions or the tensors of the adapters are damaged.
    """
    names = config.value("lora_adaptations")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise config.error("lora_adaptations", f"is {brief(names)}; it must be a list of names")
    chosen = names.index(config.adapter) if config.adapter in names else None
    if chosen is None and not config.adapter:
        warnings.warn(
            f"{checkpoint.path.name}: the base model runs, without an adapter: choose one with the option adapter "
            f"({', '.join(map(shown, names))})",
            stacklevel=2,
        )

    config.tensors.update(filter(ADAPTER.fullmatch, checkpoint.tensors))

    def original(slot: str, source: Slot) -> Slot:
        base = source.tensor.removesuffix(".weight")
        if f"{base}{ADAPTED}" not in checkpoint.tensors:
            return source
        adapter = None if chosen is None else _adapter(checkpoint, config, base, slot in TABLES, chosen)
        return replace(source, tensor=f"{base}{ADAPTED}", adapter=adapter)

    slots = {slot: tuple(original(slot, source) for source in model.sources(slot)) for slot in model.slots}
    spec = replace(model.spec, adapters=tuple(names), adapter="" if chosen is None else names[chosen])
    return replace(model, spec=replace(spec, prompts=_prompts(config, spec)), slots=slots)


def _adapter(checkpoint: Checkpoint, config: Config, base: str, is_table: bool, chosen: int) -> Adapter:
    """The adapter number ``chosen`` of the matrix ``base``. Its tensors hold all adapters: (E, N, R) and (E, R, D)."""
    count, rank = len(config.value("lora_adaptations")), config.count("lora_rank", 4)
    rows, columns = checkpoint.tensors[f"{base}{ADAPTED}"].shape
    names = [f"{base}.parametrizations.weight.0.lora_{part}" for part in ("AB" if is_table else "BA")]
    sides = list[Slot]()
    for name, shape in zip(names, ((count, rows, rank), (count, rank, columns))):
        if name not in checkpoint.tensors:
            raise FileFormatError(checkpoint.path, name, f"tensor missing; the adapters need it {shape}")
        tensor = checkpoint.tensors[name]
        if tensor.shape != shape:
            problem = f"tensor has shape {tensor.shape}; the adapters need {shape}"
            raise FileFormatError(checkpoint.path, name, problem, tensor.offset)
        sides.append(Slot(name, rows=(chosen * shape[1], (chosen + 1) * shape[1])))
    left, right = sides
    return Adapter(left, right, config.number("lora_alpha", 1.0) / rank)


def _prompts(config: Config, spec: ModelSpec) -> tuple[tuple[str, str], ...]:
    """The prompts by name: the instruction of each adapter, and other prompts of the file.

    The instruction of the merged adapter is the default prompt.
    """
    instructions = config.table("task_instructions")
    prompts = {name: instructions.text(name, "") for name in spec.adapters} | dict(spec.prompts)
    if spec.adapter:
        prompts[""] = instructions.text(spec.adapter, "")
    return tuple(prompts.items())


def jina_embeddings_v3_from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture jina-bert-v3. Adapters are separate files."""
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "jina_embeddings_v3", "gelu", names, gated=False)
    return gguf_model(checkpoint, config.with_prefix("jina-bert-v3."), body, names)


JINA_EMBEDDINGS_V3 = Family(
    "jina_embeddings_v3",
    gguf={"jina-bert-v3": jina_embeddings_v3_from_gguf},
    safetensors={"jina_embeddings_v3": jina_embeddings_v3_from_config},
    # A pooler without a classifier is not run; a tied decoder equals the embedding.
    unused=(r"(roberta\.)?pooler\..+", r"(roberta\.)?embeddings\.(position|token_type)_ids", r"lm_head\.decoder\..+"),
    skipped=(r"(lm_head|classifier|qa_outputs)\..+",),
    biases=("token_types.weight", *(f"blk.0.{name}.bias" for name in ("attn_q", "attn_output", "ffn_up", "ffn_down"))),
    gguf_usual=GGUF_KEYS,
)
