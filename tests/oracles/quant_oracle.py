"""Random blocks of the stored formats, and their values as the gguf package decodes them.

    python tests/oracles/quant_oracle.py --out tests/goldens/quant/blocks.npz

The committed golden was made with gguf 0.19.0 and numpy 2.4.6 on Python 3.11. It contains every format that
Pellucid has:

    <NAME>.raw      uint8   [blocks, bytes of a block]
    <NAME>.values   float32 [blocks, values of a block]
    made_with       str     []    JSON: versions

Every byte is random, so scales have any sign and size. Every fourth block has subnormal float16 scales, every fourth
the largest. One block is all zeros, and one is all ones except for its scales. Blocks with values that are not finite
are drawn again.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

# Number of blocks, and the byte offsets of the float16 numbers in a block.
FORMATS = {
    "Q4_0": (24, [0]),
    "Q4_1": (24, [0, 2]),
    "Q5_0": (24, [0]),
    "Q5_1": (24, [0, 2]),
    "Q8_0": (24, [0]),
    "IQ4_NL": (24, [0]),
    "MXFP4": (24, []),
    "Q2_K": (6, [80, 82]),
    "Q3_K": (6, [108]),
    "Q4_K": (6, [0, 2]),
    "Q5_K": (6, [0, 2]),
    "Q6_K": (6, [208]),
    "IQ4_XS": (6, [0]),
    "F16": (256, []),
    "BF16": (256, []),
    "F32": (64, []),
}


def values_of(name: str, raw: np.ndarray) -> np.ndarray:
    """The blocks' values as the package decodes them, float32."""
    if name == "F32":
        return raw.view("<f4")
    if name == "F16":
        return raw.view("<f2").astype(np.float32)
    return gguf.quants.dequantize(raw, Kind[name])


def draw(name: str, count: int, halves: list[int], rng: np.random.Generator) -> np.ndarray:
    size = gguf.GGML_QUANT_SIZES[Kind[name]][1]
    blocks: list[np.ndarray] = []
    while len(blocks) < count:
        raw = rng.integers(0, 256, size, np.uint8)
        index = len(blocks)
        if index < 2 and halves:
            raw[:] = 255 * index
        for at in halves:
            exponent = {1: 0, 2: 0, 3: 30}.get(index % 4, rng.integers(31))
            half = exponent << 10 | rng.integers(1024) | rng.integers(2) << 15
            raw[at : at + 2] = np.array([half], "<u2").view(np.uint8)
        if index == 0 and halves:
            raw[:] = 0
        with np.errstate(all="ignore"):
            if np.isfinite(values_of(name, raw[None])).all():
                blocks.append(raw)
    return np.stack(blocks)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    arrays: dict[str, np.ndarray] = {}
    for seed, (name, (count, halves)) in enumerate(FORMATS.items()):
        raw = draw(name, count, halves, np.random.default_rng(seed))
        arrays[f"{name}.raw"], arrays[f"{name}.values"] = raw, values_of(name, raw)
    versions = {package: version(package) for package in ("gguf", "numpy")}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, made_with=np.array(json.dumps(versions)), **arrays)
    print(f"{out}: {len(FORMATS)} formats, {out.stat().st_size:,} bytes, {versions}")


if __name__ == "__main__":
    main()
