"""Missing keys of a config.json have the defaults of transformers, for every family of the tiny models.

    python tests/oracles/defaults_oracle.py

Pellucid reads the default configuration of each model type as a config.json with all keys, and again without each key.
The two specs must be equal, or Pellucid must refuse the second file. TENSORS lists exempt keys by model type ("" for
all types): a wrong default contradicts the shapes of tensors, so that the file is refused later.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import transformers
from tiny_encoders import MODELS as ENCODERS
from tiny_models import MODELS

from pellucid.errors import PellucidError
from pellucid.model.config import Config
from pellucid.model.family import architectures
from pellucid.model.spec import ModelSpec
from pellucid.testing import WithoutData

TENSORS = {
    "": {"num_key_value_heads", "head_dim", "intermediate_size", "hidden_size", "vocab_size"},
    "deepseek_v2": {"q_lora_rank"},
    "deepseek_v3": {"q_lora_rank"},
    "gemma3n_text": {"num_kv_shared_layers", "vocab_size_per_layer_input"},
    "gemma4_text": {"num_kv_shared_layers", "vocab_size_per_layer_input"},
}
NO_MODEL = {"glm4_moe", "deepseek_v2"}
"""Model types whose defaults are refused: heads do not divide the width, or the experts per token are missing."""


def spec_of(model_type: str, metadata: dict[str, Any]) -> ModelSpec:
    path = Path("config.json")
    read = architectures("safetensors")[model_type].readers("safetensors")[model_type]
    return read(WithoutData("safetensors", path, metadata), Config(metadata, path)).spec


def differing(model_type: str, whole: dict[str, Any]) -> list[str]:
    """Keys whose absence changes the spec, as "key = default"."""
    wanted, found = spec_of(model_type, whole), []
    for key in whole.keys() - TENSORS[""] - TENSORS.get(model_type, set()) - {"model_type"}:
        try:
            if spec_of(model_type, {other: value for other, value in whole.items() if other != key}) != wanted:
                found.append(f"{key} = {json.dumps(whole[key])}")
        except PellucidError:
            continue
    return sorted(found)


def main() -> None:
    warnings.filterwarnings("ignore")
    seen, bad = set(), 0
    configs = [classes.partition(":")[2] or f"{classes}Config" for classes, _ in MODELS.values()]
    configs += [config for _, config, *_ in ENCODERS.values()]
    for config in configs:
        kind = getattr(transformers, config)
        if kind.model_type in seen or kind.model_type not in architectures("safetensors"):
            continue
        seen.add(kind.model_type)
        whole = json.loads(kind().to_json_string(use_diff=False))
        try:
            found = differing(kind.model_type, whole)
        except PellucidError as error:
            print(f"{kind.model_type}: refused: {error}")
            bad += kind.model_type not in NO_MODEL
            continue
        bad += bool(found)
        print(f"{kind.model_type}: {', '.join(found) or 'equal'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
