"""Values of Pellucid's hook points inside the tiny models, as transformers computes them.

    python tests/oracles/trace_oracle.py --out tests/goldens/trace [NAME...]

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU), safetensors 0.8.0 on Python 3.11, in
float32 with eager attention. tiny_oracle.py has written the models to tests/goldens/model/tiny.

OUT/<name>.npz has the values of the first 12 tokens of a model's expected.npz:

    input_ids                       int32   [12]
    blocks.1.attention.q            float32 [12, 4, 16]   a point by its name: (T, H, K), (T, D), (T, F), (T, V)
    blocks.1.attention.pattern      float32 [4, 12, 12]   patterns and scores: (H, T, T'); -inf for masked tokens
    blocks.1.feedforward.experts    int32   [12, 2]       the chosen experts in ascending order, as are their weights
    pool                            float32 [1, 64]       a row for each sequence
    made_with                       str     []            JSON: versions

It has all points of the blocks in ``MODELS``, and the residual of the other blocks. trace_families.py maps the values
of transformers to points, and lists the points without a counterpart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Container
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tiny_models import MODELS as TINY
from tiny_oracle import made
from trace_capture import Seen, Tensor
from trace_families import FAMILIES, Source

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

GOLDENS = Path(__file__).parents[1] / "goldens" / "model" / "tiny"
LENGTH = 12
MODELS: dict[str, tuple[int, ...]] = {
    "llama": (1,),
    "qwen2": (1,),
    "gemma2": (2,),
    "gemma3": (4, 5),
    "gpt2": (1,),
    "bloom": (1,),
    "olmo2": (1,),
    "falcon": (1,),
    "qwen2_moe": (1,),
    "gpt_oss": (2,),
    "qwen3_next": (2,),
    "qwen3_next-odd": (1, 2),
    "granitemoehybrid": (1, 2),
    "falcon_h1-odd": (2,),
    "lfm2": (0,),
    "deepseek_v3": (2,),
    "deepseek_v3-odd": (3,),
    "bert": (1,),
}


QUERIES = ("q", "q_norm", "q_rotary", "q_rotary_input", "k_up", "heads", "latent_heads")
KEYS = ("k", "v", "k_norm", "k_rotary")
DELTA_KEYS = ("q", "k", "q_conv", "k_conv", "q_norm", "k_norm")
DELTA_VALUES = ("v", "v_conv", "scan", "head_norm")


def heads_of(point: str, config: Any) -> int:
    """Number of heads in a row of a point; 0 if a row is a single vector."""
    part, _, name = point.rpartition(".")
    if part.endswith("attention"):
        queries = config.num_attention_heads
        keys = 1 if hasattr(config, "kv_lora_rank") else getattr(config, "num_key_value_heads", queries)
        keys = 1 if getattr(config, "multi_query", False) else keys
        return queries if name in QUERIES else keys if name in KEYS else 0
    if part.endswith("recurrent") and hasattr(config, "linear_num_key_heads"):
        heads = {1: config.linear_num_key_heads, 2: config.linear_num_value_heads}
        return heads.get((name in DELTA_KEYS) + 2 * (name in DELTA_VALUES), 0)
    if part.endswith("recurrent") and hasattr(config, "mamba_n_heads"):
        return {"scan": config.mamba_n_heads, "output_norm": config.mamba_n_groups}.get(name, 0)
    return 0


def shaped(point: str, x: Tensor, config: Any, length: int) -> Tensor:
    """Reshape a value of ``length`` tokens to its point's shape: (T, ...), or (H, T, T') for patterns."""
    if point.endswith((".scores", ".pattern")):
        return x.reshape(-1, length, length)
    if point in ("pool", "normalize") or point.endswith("experts.output"):
        return x
    if x.ndim == 4 and x.shape[2] == length:  # (B, H, T, K)
        x = x.transpose(1, 2)
    heads = heads_of(point, config)
    return x.reshape(length, heads, -1) if heads else x.reshape(length, -1)


def points_of(seen: Seen, family: str, length: int, blocks: Container[int] | None = None) -> dict[str, Tensor]:
    """Values of a model's points by name, for ``length`` tokens. Blocks not in ``blocks`` have only the residual."""
    places, found = FAMILIES[family], dict[str, Tensor]()

    def take(point: str, source: Source, at: str = "") -> None:
        value = seen(source, at) if isinstance(source, str) else source(seen, at)
        found[point] = shaped(point, value, seen.config, length)

    for point, source in places.outside.items():
        take(point, source)
    modules = {name for name, _ in seen.model.named_modules()}
    for layer in range(len(seen.module(places.blocks))):
        at, name = f"{places.blocks}.{layer}", f"blocks.{layer}"
        own = {
            point: source
            for key, of in places.inside.items()
            if not key or f"{at}.{key}" in modules
            for point, source in of.items()
        }
        for point, source in own.items():
            if blocks is None or layer in blocks or point == "residual":
                take(f"{name}.{point}", source, at)
    return found


def sorted_by_expert(points: dict[str, Tensor]) -> None:
    """Sort the chosen experts of each token in ascending order, with their weights and results."""
    for name in [name for name in points if name.endswith("feedforward.experts")]:
        points[name], order = points[name].sort(-1)
        weights, results = name.replace("experts", "expert_weights"), f"{name}.output"
        points[weights] = points[weights].gather(-1, order)
        points[results] = torch.take_along_dim(points[results], order[:, :, None], 1)


def check(name: str, arrays: dict[str, np.ndarray], logits: np.ndarray) -> None:
    """Check that the captured logits are the logits of expected.npz."""
    difference = float(np.abs(arrays["project.logits"] - logits[:LENGTH]).max())
    if difference > 1e-4:
        raise SystemExit(f"{name}: logits differ by {difference:.2g} from those of expected.npz")


def load(name: str, folder: Path) -> torch.nn.Module:
    """Load a tiny model in float32. Drawn weights are written to ``folder``."""
    recipe, source = GOLDENS / name / "tensors.json", GOLDENS / name
    if recipe.exists():
        said, source = json.loads(recipe.read_text()), folder / name
        source.mkdir()
        shutil.copy(GOLDENS / name / "config.json", source)
        weights = draw(said["tensors"], said["seed"], said["offset"])
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    kind, _ = made(*TINY[name])
    options = {"add_pooling_layer": False} if kind.__name__ == "BertModel" else {}
    return kind.from_pretrained(source, dtype=torch.float32, attn_implementation="eager", **options).eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made_with = {name: version(name) for name in ("transformers", "torch", "safetensors", "numpy")}
    with TemporaryDirectory() as folder:
        for name, blocks in MODELS.items():
            if args.names and name not in args.names:
                continue
            expected = np.load(GOLDENS / name / "expected.npz")
            ids = expected["input_ids"][:LENGTH]
            seen = Seen(load(name, Path(folder)))
            with seen.wrapped():
                seen.model(torch.from_numpy(ids[None].astype(np.int64)))
            points = points_of(seen, name.partition("-")[0], LENGTH, blocks)
            sorted_by_expert(points)
            arrays = {
                key: x.numpy().astype(np.int32 if x.dtype == torch.int64 else np.float32) for key, x in points.items()
            }
            if "logits" in expected:
                check(name, arrays, expected["logits"])
            file = args.out / f"{name}.npz"
            np.savez_compressed(file, **{"input_ids": ids, **arrays, "made_with": np.array(json.dumps(made_with))})
            print(f"{name}: {len(arrays)} points, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
