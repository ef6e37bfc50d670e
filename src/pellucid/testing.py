"""Random models of any family and shape, for tests, teaching and measurements: `random_model`.

The family's own reader determines the tensors of a configuration, so this module knows no family.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.config import Config
from pellucid.model.family import Family, architectures, known_families
from pellucid.model.shapes import Shape, expected_shapes
from pellucid.model.standard_decoder import KEYS
from pellucid.model.weight_map import Model, Slot
from pellucid.tokenize.stages.decode import byte_alphabet
from pellucid.weights.checkpoint import Tensor
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import Format, lookup
from pellucid.weights.written import Written, write_gguf, write_safetensors

__all__ = ["planned_model", "random_model"]

# A tokenizer for random models: a token for each of the 256 bytes, "<s>", "</s>", and unused tokens.

SMALLEST = 258
BOS, EOS = 256, 257
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # llama.cpp's types of tokens


def _pieces(vocabulary: int) -> list[str]:
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    unused = [f"<unused{i}>" for i in range(vocabulary - SMALLEST)]
    return [*(spelling[byte] for byte in range(256)), "<s>", "</s>", *unused]


def gguf_tokenizer(vocabulary: int) -> dict[str, Any]:
    """Keys of the tokenizer in GGUF. ``vocabulary`` is at least SMALLEST."""
    pieces = _pieces(vocabulary)
    types = [_NORMAL] * 256 + [_CONTROL] * 2 + [_UNUSED] * (len(pieces) - SMALLEST)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": False,
    }


def json_tokenizer(vocabulary: int) -> dict[str, Any]:
    """Contents of tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = {piece: number for number, piece in enumerate(_pieces(vocabulary))}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[text], "content": text, **special} for text in ("<s>", "</s>")],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": ids, "merges": [],
        },
    }  # fmt: skip


SHAPE: Mapping[str, int] = {
    "vocabulary": 320,
    "context": 256,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "feed_forward": 96,
    "experts": 8,
    "chosen": 2,
    "expert_width": 32,
    "window": 64,
    "state_heads": 8,
    "state_value": 16,
    "state_groups": 2,
    "state_dim": 16,
    "taps": 4,
    "rank": 32,
    "query_rank": 48,
    "plain_dim": 32,
    "rotated_dim": 16,
    "value_dim": 16,
}
"""Dimensions of a model and their defaults. A family ignores the dimensions of parts that it does not have, such as
experts, windows, states or latent attention. A recurrent layer has a state (state_dim, state_value) for each head; the
heads of a group share keys. In latent attention, the first ``plain_dim`` values of a head's key have no position
encoding, and the next ``rotated_dim`` values have a rotary position encoding.
"""

GGUF_KEYS: Mapping[str, str] = {
    "vocabulary": "vocab_size",
    "context": "context_length",
    "width": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "feed_forward": "feed_forward_length",
    "experts": "expert_count",
    "chosen": "expert_used_count",
    "expert_width": "expert_feed_forward_length",
    "window": "attention.sliding_window",
    "state_heads": "ssm.time_step_rank",
    "state_groups": "ssm.group_count",
    "state_dim": "ssm.state_size",
    "taps": "ssm.conv_kernel",
    "rank": "attention.kv_lora_rank",
    "query_rank": "attention.q_lora_rank",
    "value_dim": "attention.value_length_mla",
}
HEAD_KEYS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
SLIDING_HEAD_KEYS = tuple(f"{key}_swa" for key in HEAD_KEYS)
USUAL: Mapping[str, float] = {
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.freq_base": 10_000.0,
}
CONFIG_USUAL: Mapping[str, float | str] = {
    "rms_norm_eps": 1e-5,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_shared_expert_intermediate_size": 32,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "block_auto_adjust_ff_dim": False,
    "hidden_size_per_layer_input": 16,
    "global_head_dim": 32,
    "laurel_rank": 16,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "decoder_start_token_id": BOS,
    "embedding_size": 32,
}
"""Values of keys in config.json that some families need. The keys are not dimensions of ``SHAPE``."""
ALWAYS = ("model_type", "bos_token_id", "eos_token_id")
"""Keys that config.json always has, although no family's reader reads them."""


class WithoutData:
    """A checkpoint with metadata and without data."""

    def __init__(self, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        self.kind, self.path, self.metadata = kind, path, metadata
        self.tensors: Mapping[str, Tensor] = {}

    def data(self, name: str) -> NDArray[np.uint8]:
        raise KeyError(name)

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        raise KeyError(name)

    def file_facts(self) -> list[tuple[str, int, int, int]]:
        return []

    def check_unchanged(self) -> None: ...

    def close(self) -> None: ...


def random_model(
    family: str,
    path: str | Path,
    *,
    kind: Literal["gguf", "safetensors"] = "gguf",
    form: str = "F32",
    seed: int = 0,
    tied: bool = True,
    metadata: Mapping[str, Any] | None = None,
    **shape: int,
) -> Path:
    """Write a model with random weights that keep the scale of activations. Returns ``path``.

    ``family`` is a name of ``pellucid list --families``, or an architecture of a kind of file. ``kind`` is "gguf" (one
    file at ``path``) or "safetensors" (a folder as transformers writes it). ``form`` is the format of the matrices:
    "F32", "F16", "BF16", or in GGUF any other format, such as "Q4_K". With ``tied``, the output head uses the matrix of
    the embedding. ``shape`` are dimensions of ``SHAPE``. ``metadata`` are further keys of the file, in GGUF without the
    architecture's name. Keys of a tokenizer replace the default tokenizer, which has a token for each byte.

    The same arguments give the same file.

    Raises:
        InvalidRequest: the family is not known in this kind of file, a dimension is not known, or the vocabulary has
            fewer than 258 tokens and no tokenizer is given.
        FileFormatError, UnsupportedModel: the family's reader refuses the metadata; the message names the key.
    """
    path, more = Path(path), dict(metadata or {})
    planned, model, config = _planned(family, path, kind, tied, more, shape)
    file_metadata, tensors = planned.metadata, _tensors(model, lookup(form, "the model"), seed)
    if kind == "safetensors":  # safetensors gives a convolution an extra dimension of size 1
        tensors = {name: _as_convolution(name, tensor) for name, tensor in tensors.items()}
    if kind == "gguf":
        tokens = {key: value for key, value in file_metadata.items() if key.startswith(("tokenizer.", "general."))}
        extra = {f"{file_metadata['general.architecture']}.{key}" for key in more}
        kept = {key: file_metadata[key] for key in file_metadata if key in config.read or key in extra}
        write_gguf(path, tokens | kept, tensors)
        return path
    path.mkdir(parents=True, exist_ok=True)
    read = {key: value for key, value in file_metadata.items() if key in config.read or key in ALWAYS}
    (path / "config.json").write_text(json.dumps(read, indent=2) + "\n", encoding="utf-8")
    tokenizer = json_tokenizer(model.spec.embedding.vocabulary)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    write_safetensors(path / "model.safetensors", tensors)
    return path


def planned_model(
    family: str, *, tied: bool = True, metadata: Mapping[str, Any] | None = None, shape: Mapping[str, int] | None = None
) -> Model:
    """The model that `random_model` would write, without weights. Raises the errors of `random_model`."""
    known = known_families().get(family)
    kind: Literal["gguf", "safetensors"] = "safetensors" if known is None or known.safetensors else "gguf"
    return _planned(family, Path(family), kind, tied, metadata or {}, shape or {})[1]


def _planned(
    family: str,
    path: Path,
    kind: Literal["gguf", "safetensors"],
    tied: bool,
    more: Mapping[str, Any],
    shape: Mapping[str, int],
) -> tuple[WithoutData, Model, Config]:
    """A model's metadata, the model that the family's reader creates, and the keys that the reader has read."""
    dims = {**SHAPE, **shape}
    if unknown := sorted(shape.keys() - SHAPE.keys()):
        raise InvalidRequest(f"dimension {unknown[0]} is not known (known: {', '.join(SHAPE)})")
    own_tokenizer = any(key.startswith("tokenizer.") for key in more)
    if dims["vocabulary"] < SMALLEST and not own_tokenizer:
        raise InvalidRequest(f"vocabulary={dims['vocabulary']}: must be at least {SMALLEST}")
    name, known_family = _find(family, kind)
    if "experts" not in known_family.keys and "experts" not in shape:
        dims["experts"] = 0
    if known_family.pattern and "layers" not in shape:
        dims["layers"] = len(known_family.pattern)
    if kind == "gguf":
        file_metadata = _gguf_metadata(name, known_family, dims, more)
        if not own_tokenizer:
            file_metadata |= gguf_tokenizer(dims["vocabulary"])
    else:
        file_metadata = _config(name, known_family, dims, {"tie_word_embeddings": tied, **more})
    planned = WithoutData(kind, path, file_metadata)
    if kind == "gguf":  # readers detect these parts of a model from its tensors
        matrix = (dims["vocabulary"], dims["width"])
        names = ["token_embd.weight", *([] if tied else ["output.weight"]), *known_family.biases]
        planned.tensors = {one: Tensor(one, matrix, "F32", path, 0, 0) for one in names}
    config = Config(file_metadata, path)
    return planned, known_family.readers(kind)[name](planned, config), config


def _find(family: str, kind: str) -> tuple[str, Family]:
    """Architecture and family of a name, which is an architecture or a family."""
    by_architecture = architectures(kind)
    if family in by_architecture:
        return family, by_architecture[family]
    known = known_families().get(family)
    if known and known.readers(kind):
        return next(iter(known.readers(kind))), known
    raise InvalidRequest(f"family {family!r} is not known for {kind} (known: {', '.join(sorted(by_architecture))})")


def _kinds(family: Family, layers: int) -> list[str]:
    """Kind of each layer, if the family has several kinds."""
    return [family.pattern[layer % len(family.pattern)] for layer in range(layers)] if family.pattern else []


def _gguf_metadata(name: str, family: Family, dims: Mapping[str, int], more: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {key: dims[dimension] for dimension, key in GGUF_KEYS.items()}
    own |= {"ssm.inner_size": dims["state_heads"] * dims["state_value"], "shortconv.l_cache": dims["taps"]}
    if family.kv_by_layer:
        kinds = _kinds(family, dims["layers"])
        own["attention.head_count_kv"] = [dims["kv_heads"] if kind == "full_attention" else 0 for kind in kinds]
        if "mlp" in kinds:
            own["feed_forward_length"] = [dims["feed_forward"] if kind == "mlp" else 0 for kind in kinds]
    if "sliding_attention" in family.pattern:
        kinds = _kinds(family, dims["layers"])
        own["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
        own |= dict.fromkeys(SLIDING_HEAD_KEYS, dims["head_dim"])
        own["embedding_length_per_layer_input"] = CONFIG_USUAL["hidden_size_per_layer_input"]
    own |= {**dict.fromkeys(HEAD_KEYS, dims["head_dim"]), **USUAL, **family.gguf_usual}
    if "rank" in family.keys:  # dimensions of the cached vectors, as in llama.cpp
        rank, rotated = dims["rank"], dims["rotated_dim"]
        lengths = (rank + rotated, rank, rotated)
        own |= {**dict(zip(HEAD_KEYS, lengths)), "attention.head_count_kv": 1}
        own["attention.key_length_mla"] = dims["plain_dim"] + rotated
    elsewhere = {key: value for key, value in more.items() if key.startswith(("tokenizer.", "general."))}
    own |= {key: value for key, value in more.items() if key not in elsewhere}
    return {
        "general.architecture": name,
        "general.name": f"random {name}",
        **{f"{name}.{key}": value for key, value in own.items()},
        **elsewhere,
    }


def _config(name: str, family: Family, dims: Mapping[str, int], more: Mapping[str, Any]) -> dict[str, Any]:
    keys = {dimension: key for dimension, key in {**KEYS, **family.keys}.items() if dimension in dims and key}
    width = dims["expert_width"]
    return {
        "model_type": name,
        "sliding_window": dims["window"],
        "mamba_expand": max(1, dims["state_heads"] * dims["state_value"] // dims["width"]),
        **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), width),
        **CONFIG_USUAL,
        **{name: dims[dimension] for dimension, key in keys.items() for name in key.split(",")},
        **({family.keys["pattern"]: _kinds(family, dims["layers"])} if family.pattern else {}),
        "bos_token_id": 256,
        "eos_token_id": 257,
        **more,
    }


def _tensors(model: Model, form: Format, seed: int) -> dict[str, Written]:
    """All tensors of the model's slots, in the order of the slots."""
    shapes: dict[str, Shape] = {}
    centres: dict[str, float] = {}
    floats: set[str] = set()  # tensors that converters do not quantize
    for slot, shape in expected_shapes(model.spec).items():
        sources = model.sources(slot)
        stored = _stored_shape(shape, sources)
        if slot.endswith((".k_up.weight", ".v_up.weight")) and len(sources) > 1:
            stored = (max((source.columns or source.rows or (0, 0))[1] for source in sources), stored[-1])
        for source in sources:
            known = shapes.get(source.tensor, stored)  # slots may share a tensor and take different rows
            shapes[source.tensor] = tuple(map(max, known, stored))
            centres[source.tensor] = _centre(slot, source)
            if slot.endswith((".bias", ".router.weight", "norm.weight", "conv.weight")):
                floats.add(source.tensor)
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        matrix = len(shape) > 1 and shape[-1] % form.block == 0 and name not in floats
        stored_form = form if matrix else lookup("F32", "the model")
        values = functools.partial(_values, shape, stored_form, (seed, number), centres[name])
        tensors[name] = Written(shape, stored_form, values)
    return tensors


def _as_convolution(name: str, tensor: Written) -> Written:
    of_convolution = name.endswith(("conv1d.weight", "conv.conv.weight"))
    return replace(tensor, shape=(tensor.shape[0], 1, tensor.shape[1])) if of_convolution else tensor


def _centre(slot: str, source: Slot) -> float:
    """Mean of a vector's values. Decay rates are negative numbers or logarithms. Norm weights are near 1."""
    if slot.endswith("rate.weight"):
        return 0.0 if source.negative_exp else -1.0
    return 0.0 if slot.endswith("bias") else 1.0 - source.plus


def _stored_shape(shape: Shape, sources: Sequence[Slot]) -> Shape:
    """Shape of the tensors that fill a slot. If slots share a tensor, it has rows up to the end of this slot's rows."""
    first, rows = sources[0], max(source.rows[1] if source.rows else 0 for source in sources)
    if first.columns:
        return max(source.columns[1] if source.columns else 0 for source in sources), shape[-2]
    if len(sources) > 1 and (len(shape) == 3 or first.flat):  # experts
        alone = len({source.tensor for source in sources}) > 1
        stored = shape[1:] if alone else (shape[0], rows // shape[0], *shape[2:])
    else:
        stored = (rows or shape[0], *shape[1:]) if len(shape) < 3 else shape
    return (*stored[:-2], stored[-1], stored[-2]) if first.transpose else stored


def _values(shape: Shape, form: Format, seed: tuple[int, int], centre: float) -> NDArray[np.uint8]:
    """Bytes of a tensor. A vector has values around ``centre``; a product with a matrix keeps its input's scale."""
    rng = np.random.default_rng(seed)
    rows, columns = int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]
    if not form.packed.is_float:
        return _random_blocks(form, rng, rows, columns)
    values = rng.standard_normal((rows, columns), np.float32)
    if len(shape) == 1:
        values = np.float32(centre) + np.float32(0.1) * values
    else:
        values *= np.float32(columns**-0.5)
    if form.packed.kind == "bf16":
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype("<u2")).view(np.uint8).reshape(-1)
    return values.astype("<f4" if form.packed.kind == "f32" else "<f2").view(np.uint8).reshape(-1)


def _random_blocks(form: Format, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Blocks of random bits with equal scales."""
    raw = np.frombuffer(rng.bytes(rows * form.row_bytes(columns)), np.uint8)
    blocks = raw.reshape(rows, columns // form.block, form.block_bytes).copy()
    _set_scales(form, blocks, 1.0)
    sample = decode_blocks(form, blocks[:64])
    _set_scales(form, blocks, float(columns**-0.5 / np.sqrt(np.mean(sample.astype(np.float64) ** 2))))
    return blocks.reshape(-1)


def _set_scales(form: Format, blocks: NDArray[np.uint8], scale: float) -> None:
    """Set the scale of every block, and its minimum if there is one. Scales of sub-blocks stay random."""
    if form.packed.scale == "e8m0":
        number = [128 + round(float(np.log2(scale)))]
    else:
        number = list(np.array([scale], "<f2").tobytes())
    for field, (count, _) in zip(form.stored.scale_fields, form.packed.scale_fields):
        if count == 1:
            for piece, byte in zip(field.numbers[0], number):
                blocks[..., piece.byte] = byte
