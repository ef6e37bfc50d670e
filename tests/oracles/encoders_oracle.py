"""Tiny encoders with random weights, with the outputs of transformers.

    python tests/oracles/encoders_oracle.py --out tests/goldens/model/encoders [NAME...]

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU) on Python 3.11, in float32 with eager
attention. OUT/<name>/ has config.json as transformers saves it, tensors.json (the shapes of the weights, which tests
draw again: tests/support/drawn.py) and expected.npz:

    input_ids  int32   [40]
    type_ids   int32   [40]        token types, if the model has them: 0 up to token 24, then 1
    outputs    float32             [40, D] last hidden states; [1, N] scores of labels; [40, N] scores of labels, of
                                   beginnings and ends of answers, or logits of the vocabulary
    made_with  str     []          JSON: versions
"""

import argparse
import copy
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tiny_decoders
import tiny_encoders
import tiny_modern
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tiny_oracle import ONE_PLUS

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

MODELS = tiny_encoders.MODELS | tiny_modern.MODELS | tiny_decoders.MODELS
LENGTH, FIRST = 40, 24
COMPUTED = "embed_positions.weight"
"""Sines and cosines, which transformers stores and computes again if a file lacks them."""


def outputs_of(found: Any) -> np.ndarray:
    """The outputs (rows, N) of a model of any task."""
    if hasattr(found, "start_logits"):
        rows = torch.stack([found.start_logits, found.end_logits], -1)[0]
    elif hasattr(found, "prediction_logits"):
        rows = found.prediction_logits[0]
    elif hasattr(found, "logits"):
        rows = found.logits if found.logits.ndim == 2 else found.logits[0]
        rows = rows.T if rows.shape == (1, LENGTH) else rows  # one score for each token
    else:
        rows = found.last_hidden_state[0]
    return rows.numpy()


def center(folder: Path) -> None:
    """Make LFM2's convolutions centered, and name the class of LFM2.5's encoders, which transformers 5.24 lacks."""

    def centered(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **_: Any) -> torch.Tensor:
        channels, taps = weight.shape
        return torch.nn.functional.conv1d(x, weight[:, None], bias, padding=taps // 2, groups=channels)

    transformers.models.lfm2.modeling_lfm2.causal_conv1d_fn = centered
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"Lfm2Model"', '"Lfm2BidirectionalModel"'))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    made_with = {name: version(name) for name in ("transformers", "torch", "safetensors", "numpy")}
    for name, (model_class, config_class, options) in MODELS.items():
        if args.names and name not in args.names:
            continue
        config = getattr(transformers, config_class)(**copy.deepcopy(options))
        kind, folder = getattr(transformers, model_class), args.out / name
        config._attn_implementation = "eager"
        kind(config).save_pretrained(folder)
        path = folder / "model.safetensors"
        stored = load_file(path).items()
        tensors = {key: list(x.shape) for key, x in stored if not key.endswith(COMPUTED)}
        offset = 0.0 if config.model_type in ONE_PLUS else 1.0
        save_file(draw(tensors, name, offset), path, metadata={"format": "pt"})
        recipe = {"seed": name, "offset": offset, "tensors": tensors}
        (folder / "tensors.json").write_text(json.dumps(recipe, indent=0) + "\n")
        if name in tiny_decoders.CENTERED:
            center(folder)
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        rng = np.random.default_rng([21, len(name)])
        ids = rng.integers(5, config.vocab_size, LENGTH).astype(np.int32)
        lead = (None, None) if name.endswith("-choice") else (None,)  # one text, with one choice
        given: dict[str, Any] = {"input_ids": torch.from_numpy(ids[lead].astype(np.int64))}
        saved = {"input_ids": ids, "made_with": np.array(json.dumps(made_with))}
        if getattr(config, "type_vocab_size", 0) > 1:
            types = (np.arange(LENGTH) >= FIRST).astype(np.int32)
            given["token_type_ids"] = torch.from_numpy(types[lead].astype(np.int64))
            saved["type_ids"] = types
        saved["outputs"] = outputs_of(model(**given))
        np.savez_compressed(folder / "expected.npz", **saved)
        path.unlink()  # tests draw the weights again
        (folder / "generation_config.json").unlink(missing_ok=True)
        print(f"{name}: {saved['outputs'].shape}, standard deviation {saved['outputs'].std():.3f}")


if __name__ == "__main__":
    main()
