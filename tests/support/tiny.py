"""Tiny models: the goldens in tests/goldens/model/tiny, and random Llamas that tests write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.family import known_families
from pellucid.model.read import read_model
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model
from pellucid.plan.bind import layouts
from pellucid.plan.pipeline_stages import Stage
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import BlockTable
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.open import open_checkpoint
from support.drawn import draw
from support.model_files import gguf, safetensors

GOLDENS = Path(__file__).parents[1] / "goldens" / "model"
_written = TemporaryDirectory(prefix="pellucid-tiny-")


def _whole(folder: Path) -> Path:
    """The folder; if it has files ``tensors.json`` instead of weights, a copy with the weights drawn."""
    if not any(folder.rglob("tensors.json")):
        return folder
    copy = Path(_written.name) / folder.parent.name / folder.name
    shutil.copytree(folder, copy)
    for recipe in [*copy.rglob("tensors.json")]:
        said = json.loads(recipe.read_text())
        weights = draw(said["tensors"], said["seed"], said["offset"])
        kinds = {name: "U8" if w.dtype == np.uint8 else "F32" for name, w in weights.items()}
        tensors = {name: (kinds[name], w.shape, w.tobytes()) for name, w in weights.items()}
        recipe.with_name("model.safetensors").write_bytes(safetensors(tensors))
        recipe.unlink()
    return copy


TINY = {folder.name: _whole(folder) for folder in sorted((GOLDENS / "tiny").iterdir())}
ENCODERS = {folder.name: _whole(folder) for folder in sorted((GOLDENS / "encoders").iterdir())}
"""Encoders and their heads (tests/oracles/encoders_oracle.py)."""
TASKS = {folder.name: _whole(folder) for folder in sorted((GOLDENS / "tasks").iterdir())}
"""Encoders with tokenizers and the results of their tasks (tests/oracles/tasks_oracle.py)."""
SAVED = {folder.name: _whole(folder) for folder in sorted((GOLDENS / "saved").iterdir())}
"""Folders of sentence-transformers with their vectors and scores (tests/oracles/saved_oracle.py)."""
SOURCES = {folder.name: _whole(folder) for folder in sorted((GOLDENS / "sources").iterdir())}
"""Encoder-decoders (tests/oracles/sources_oracle.py)."""
LONG = {folder.name: _whole(folder) for folder in sorted((GOLDENS / "long").iterdir())}
"""Models with texts of more than 256 tokens, or beyond the stated context (tests/oracles/long_oracle.py)."""
OF_FAMILY = {name: path for name, path in {**TINY, **ENCODERS}.items() if name in known_families()}
"""The plain model of each family, but encoder-decoders. Names of other models have a variant: "gemma3-softcap"."""
FAMILIES = [name for name in OF_FAMILY if name in TINY]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Checkpoint, Model]]:
    checkpoint = open_checkpoint(path)
    try:
        yield checkpoint, read_model(checkpoint)
    finally:
        checkpoint.close()


DECODERS = []
for _name in TINY:
    with opened(TINY[_name]) as (_, _model):
        if _model.spec.generates:
            DECODERS.append(_name)


def some_with_all_kernels() -> list[str]:
    """A subset of FAMILIES whose plans together have every kernel name and kind of all FAMILIES."""
    kernels = {}
    for name in FAMILIES:
        with opened(TINY[name]) as (checkpoint, model):
            plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
        used = {operation.kernel for operation in plan.operations}
        kernels[name] = {(kernel.name, dict(kernel.parameters).get("kind")) for kernel in used}
    missing, found = set().union(*kernels.values()), []
    while missing:
        found.append(max(kernels, key=lambda name: len(kernels[name] & missing)))
        missing -= kernels[found[-1]]
    return found


@contextmanager
def model_runner(
    path: Path,
    plan: Plan | None = None,
    threads: int = 1,
    activation_bits: int = MAX_ACTIVATION_BITS,
    stage: Stage | None = None,
    spec: ModelSpec | None = None,
    model: Model | None = None,
    **limits: int,
) -> Iterator[ModelRunner]:
    """A runner of a model or of its ``stage``, precise by default, for steps of up to 64 tokens with all logits.

    ``plan``, ``spec`` and ``model`` replace the model's own.
    """
    with opened(path) as (checkpoint, own):
        model = msgspec.structs.replace(model or own, spec=spec or (model or own).spec)
        plan = plan or pipeline.build_plan(model.spec, layouts(checkpoint, model), activation_bits)
        room = StepLimits(**{"context": 256, "tokens": 64, "outputs": 64, **limits})
        net = ModelRunner(checkpoint, model, plan, room, threads, stage=stage)
        try:
            yield net
        finally:
            net.close()


def table_for(spec: ModelSpec, tokens: int) -> BlockTable:
    """An empty block table for a text of ``tokens`` tokens, as the scheduler makes it."""
    return BlockTable(scaled=0 < spec.unscaled_context < tokens)


def llama_config(vocabulary: int = 320, context: int = 128, **changes: Any) -> dict[str, Any]:
    config = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return {**config, **changes}


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal weights divided by the square root of the columns; norms around 1."""
    random = np.random.default_rng(seed)
    return {
        name: np.float32(random.normal(size=shape) / shape[-1] ** 0.5 + (len(shape) == 1))
        for name, shape in shapes.items()
    }


def write_llama(folder: Path, vocabulary: int = 320, context: int = 128, seed: int = 0) -> Path:
    """Write a random Llama of two layers as config.json and model.safetensors."""
    D, F, K = 32, 64, 16
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, D)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{n}_proj.weight": (w, D) for n, w in (("q", D), ("k", K), ("v", K))}
        shapes |= {f"{at}.self_attn.o_proj.weight": (D, D), f"{at}.mlp.down_proj.weight": (D, F)}
        shapes |= {f"{at}.mlp.{n}_proj.weight": (F, D) for n in ("gate", "up")}
        shapes |= {f"{at}.{n}_layernorm.weight": (D,) for n in ("input", "post_attention")}
    weights = random_weights({**shapes, "model.norm.weight": (D,), "lm_head.weight": (vocabulary, D)}, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(llama_config(vocabulary, context)))
    tensors = {name: ("F32", w.shape, w.tobytes()) for name, w in weights.items()}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


LLAMA_GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.block_count": 1,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": 16,
}
LLAMA_GGUF_SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (64, 32),
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
}


def write_llama_gguf(
    path: Path, metadata: Mapping[str, Any] | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Path:
    """Write a random Llama of one layer as GGUF, in F32."""
    weights = random_weights(LLAMA_GGUF_SHAPES if shapes is None else shapes)
    tensors = {name: (w.shape, 0, w.tobytes()) for name, w in weights.items()}
    path.write_bytes(gguf(LLAMA_GGUF if metadata is None else metadata, tensors))
    return path
