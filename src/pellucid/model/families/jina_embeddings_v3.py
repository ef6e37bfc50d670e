"""Jina Embeddings v3 (Sturua et al. 2024): XLM-RoBERTa with rotary positions instead of learned positions.

Published files also have low-rank adapters (LoRA) of five tasks, such as "retrieval.query". All matrices of the body
and the tables of the embedding have adapters. One adapter is merged into the weights when they are loaded:

    W + lora_alpha / lora_rank * B A     (of a table: A B)

Its instruction is put before each text, as ``encode(task=...)`` of the model's own code does. Without an adapter, the
base model runs, and a warning names the adapters.
Source: modeling_lora.py in https://huggingface.co/jinaai/xlm-roberta-flash-implementation
"""

from __future__ import annotations

import re
import warnings

from msgspec.structs import replace

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief, shown
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.encoder_parts import bidirectional, encoder_model, head_sizes
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import GGUF_KEYS, gguf_body, gguf_model, gguf_names
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead
from pellucid.model.outputs import OutputActivation
from pellucid.model.positions import Rotary
from pellucid.model.rotary_metadata import rope_parameters
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.standard_encoder import ACTIVATIONS
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Adapter, Model, Slot
from pellucid.weights.checkpoint import Checkpoint

BASE, HUB_BASE = 20_000.0, 10_000.0
NAMES = TensorNames(
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
HEADS: Heads = {
    "classify": TaskHead(
        (HeadLayer("classifier.dense", activation="tanh"), HeadLayer("classifier.out_proj", "labels")), "cls"
    ),
    "tag": TaskHead((HeadLayer("classifier", "labels"),)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (HeadLayer("lm_head.dense", activation="gelu"), HeadLayer("lm_head.layer_norm", "norm")),
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    ),
}
ADAPTER = re.compile(r".+\.parametrizations\.weight\.0\.lora_[AB]")
TABLES = ("embed.weight", "embed.types.weight")
ADAPTED = ".parametrizations.weight.original"
"""The name of a matrix that has adapters ends with this, instead of ".weight"."""


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of JinaEmbeddingsV3Model or, of the code on the hub, of XLMRobertaLoRA."""
    config.refuse("position_embedding_type", "rotary")
    config.refuse("use_reg_tokens", False)
    config.refuse("truncate_dim")
    width, (_, head_dim) = config.count("hidden_size"), head_sizes(config)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    of_hub = config.has("position_embedding_type")
    base, scaling = rope_parameters(config, base_key="rotary_emb_base", default=HUB_BASE if of_hub else BASE)
    norm = Norm("layer", config.number("layer_norm_eps", 1e-5))
    activation: OutputActivation = config.choice("hidden_act", ACTIVATIONS, "gelu")
    attention = bidirectional(
        config, rotary=Rotary(base, head_dim, "half", scaling), bias=True, output_bias=True
    )
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=False, bias=True)  # type: ignore[arg-type]
    body = ModelSpec(
        "jina_embeddings_v3",
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        Embedding(
            config.count("vocab_size"), width, types=config.optional_count("type_vocab_size"), norm=norm
        ),
        (Block(attention, feedforward, norm, "post"),) * layers,
    )
    names = NAMES if not any(name.startswith("embeddings.") for name in checkpoint.tensors) else BARE
    model = encoder_model(checkpoint, config, body, names, HEADS, activation)
    has_adapters = any(name.endswith(ADAPTED) for name in checkpoint.tensors)
    return _with_adapter(checkpoint, config, model) if has_adapters else model


BARE = replace(
    NAMES,
    names={place: name.removeprefix("roberta.") for place, name in NAMES.names.items()},
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


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture jina-bert-v3. Adapters are separate files."""
    names = gguf_names(checkpoint)
    body = gguf_body(checkpoint, config, "jina_embeddings_v3", "gelu", names, gated=False)
    return gguf_model(checkpoint, config.with_prefix("jina-bert-v3."), body, names)


JINA_EMBEDDINGS_V3 = Family(
    "jina_embeddings_v3",
    gguf={"jina-bert-v3": from_gguf},
    safetensors={"jina_embeddings_v3": from_config},
    # A pooler without a classifier is not run; a tied decoder equals the embedding.
    unused=(
        r"(roberta\.)?pooler\..+",
        r"(roberta\.)?embeddings\.(position|token_type)_ids",
        r"lm_head\.decoder\..+",
    ),
    skipped=(r"(lm_head|classifier|qa_outputs)\..+",),
    biases=(
        "token_types.weight",
        *(f"blk.0.{name}.bias" for name in ("attn_q", "attn_output", "ffn_up", "ffn_down")),
    ),
    gguf_usual=GGUF_KEYS,
)
