"""Tiny models on texts beyond the original context, with the logits of transformers.

    python tests/oracles/long_oracle.py --out tests/goldens/model/long [NAME...]

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU), numpy 2.4.6 on Python 3.11, in float32.
The folders are made like the folders of ``tiny_oracle.py``, which draws the weights; expected.npz has

    input_ids  int32   [N]
    rows       int32   [R]         the positions whose logits are kept
    logits     float32 [R, 128]    of one pass over all N tokens
    made_with  str     []          JSON: versions

    falcon          ALiBi in bfloat16, seen from position 256 on, and in the slopes of six heads
    falcon-grouped  the same with the newer arrangement of queries, keys and values
    bloom, mpt      ALiBi in float32
    llama-dynamic   "dynamic" scaling, with the frequencies of N tokens
    llama-linear, llama-yarn
                    scalings of a context that the file states without them
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tiny_models import MODELS as TINY
from tiny_options import LLAMA
from tiny_oracle import made, redraw

ALIBI = {"alibi": True, "max_position_embeddings": 1024, "num_hidden_layers": 2}
SIX = {"hidden_size": 96, "num_attention_heads": 6}
SHORT = LLAMA | {"max_position_embeddings": 64}
ROPE = {"rope_theta": 10000.0, "factor": 4.0}
MODELS = {
    "falcon": ("Falcon", TINY["falcon-alibi"][1] | ALIBI | SIX, 600),
    "falcon-grouped": ("Falcon", TINY["falcon-alibi-odd"][1] | ALIBI, 600),
    "bloom": ("Bloom", TINY["bloom-odd"][1] | {"seq_length": 512}, 400),
    "mpt": ("Mpt", TINY["mpt"][1] | {"max_seq_len": 512}, 400),
    "llama-dynamic": ("Llama", SHORT | {"rope_parameters": ROPE | {"rope_type": "dynamic"}}, 150),
    "llama-linear": ("Llama", SHORT | {"rope_parameters": ROPE | {"rope_type": "linear"}}, 150),
    "llama-yarn": (
        "Llama",
        SHORT | {"rope_parameters": ROPE | {"rope_type": "yarn", "original_max_position_embeddings": 64}},
        150,
    ),
}
"""Class, configuration and N, by name."""
ROWS = 12


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    made_with = {name: version(name) for name in ("transformers", "torch", "safetensors", "numpy")}
    for name, (classes, options, length) in MODELS.items():
        if args.names and name not in args.names:
            continue
        kind, config = made(classes, options)
        # Falcon's eager attention adds ALiBi twice, to the mask and to the scores.
        attention = "sdpa" if getattr(config, "alibi", False) else "eager"
        folder = args.out / name
        kind(config).save_pretrained(folder)
        redraw(folder, f"long {name}", config)
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
        ids = np.random.default_rng(length).integers(3, config.vocab_size, length).astype(np.int32)
        logits = model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0].numpy()
        rows = np.linspace(0, length - 1, ROWS).astype(np.int32)
        np.savez_compressed(
            folder / "expected.npz",
            input_ids=ids,
            rows=rows,
            logits=logits[rows],
            made_with=np.array(json.dumps(made_with)),
        )
        (folder / "model.safetensors").unlink()  # replaced by tensors.json
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: {length} tokens, standard deviation {logits.std():.3f}, {size} bytes")


if __name__ == "__main__":
    main()
