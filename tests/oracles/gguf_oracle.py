"""Tiny models as GGUF, written by llama.cpp's own converter, against the logits of transformers.

    python tests/oracles/gguf_oracle.py --llama-cpp FOLDER [NAME...]

FOLDER is llama.cpp's source (in the llama-cpp-python source package on PyPI: vendor/llama.cpp). For every tiny model of
tests/goldens/model/tiny whose architecture the converter knows, or those that are named, the script converts the model
without a vocabulary, reads it as Pellucid does, runs its 40 tokens with 16-bit activations and float32 keys and values,
and compares the logits with the golden's: the difference must be within 2e-4 of the logits' range.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.tiny import DECODERS, GOLDENS, TINY, opened

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner, StepLimits
from pellucid.errors import PellucidError
from pellucid.plan.weights import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

MOST = 2e-4  # of the range of the logits
WITHOUT_GGUF = ("openai-gpt", "gptj", "opt", "mpt", "falcon-many", "xglm")  # the converter does not know them
INEXPRESSIBLE = (
    *("mistral", "mixtral", "starcoder2", "gemma2-odd", "smollm3-odd", "gpt2-odd", "phi-odd", "cohere2-odd"),
    *(
        "qwen2_moe-odd",
        "qwen3_moe-odd",
        "olmoe-odd",
        "gpt_oss-odd",
        "gpt2-narrow",
        "mistral-vision",
        "gemma3-vision",
        "gemma3-linear",
        "gemma3-scalar",
        "gemma3-softcap",
        "lfm2-odd",
        "falcon_h1-odd",
        "nemotron_h-odd",
        "granitemoehybrid-odd",
        "lfm2_moe-odd",
        "deepseek_v2",
        "qwen3_next-odd",
    ),
)
"""Their windows, scales, caps, patterns, widths, biases or weights of experts are not stated in GGUF files of these
families; nor is a layer without experts among those with (nemotron_h-odd). llama.cpp ranks all groups of experts as
DeepSeek V3 does (deepseek_v2).
"""


def convert(source: Path, target: Path) -> str:
    """Convert a model folder to GGUF, float32, without a vocabulary. Returns the architecture's name."""
    import gguf
    import torch
    from conversion import ModelType, get_model_architecture, get_model_class
    from conversion.base import ModelBase

    hparams = ModelBase.load_hparams(source, False)
    if hparams["model_type"].startswith("gemma"):  # the converter counts the tokens
        vocabulary = {str(token): token for token in range(hparams["vocab_size"])}
        tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
        source = Path(shutil.copytree(source, target.with_suffix(".folder")))
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    kind: Any = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    fields = {"set_vocab": lambda self: None, "model_arch": kind.model_arch, "no_mtp": True}
    bare = type("Bare", (kind,), fields)
    with torch.inference_mode():
        older = with_older_keys(hparams)
        model = bare(source, gguf.LlamaFileType.ALL_F32, target, eager=True, hparams=older)
        model.write()
    return gguf.MODEL_ARCH_NAMES[model.model_arch]


def with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of older versions of transformers, which the converter reads."""
    rope = config.get("rope_parameters") or {}
    made = {
        "rotary_pct": rope.get("partial_rotary_factor", 1.0),
        "n_ctx": config.get("n_positions"),
        **config,
    }
    if config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        made["num_kv_heads"] = 1 if config["multi_query"] else config["num_attention_heads"]
    if config["model_type"].startswith("deepseek"):
        made["scoring_func"] = "sigmoid" if config["model_type"] == "deepseek_v3" else "softmax"
    if config["model_type"] == "granitemoehybrid":
        made["layer_types"] = [OLDER_TYPES[kind] for kind in config["layer_types"]]
    if config["model_type"] == "nemotron_h":
        types = made.pop("layers_block_type")
        made["hybrid_override_pattern"] = "".join(LETTERS[kind] for kind in types)
        made["num_hidden_layers"] = len(types)
        if "moe" not in types:
            del made["num_experts_per_tok"], made["n_routed_experts"]
    return made


OLDER_TYPES = {"linear_attention": "mamba", "full_attention": "attention"}
LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def difference(path: Path, golden: Path) -> float:
    """The largest difference of the logits, relative to their range."""
    with np.load(golden / "expected.npz") as file:
        ids, wanted = file["input_ids"].tolist(), file["logits"]
    with opened(path) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), 16, "f32")
        runner = ModelRunner(checkpoint, model, plan, StepLimits(64, tokens=64, outputs=64), 1)
        try:
            found = runner.forward([Chunk(BlockTable(), ids, outputs=len(ids))])
        finally:
            runner.close()
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    sys.path[:0] = [str(given.llama_cpp), str(given.llama_cpp / "gguf-py")]
    logging.disable()
    bad = 0
    with TemporaryDirectory() as scratch:
        for name in given.names or DECODERS:
            if name.startswith(WITHOUT_GGUF) or name in INEXPRESSIBLE:
                continue
            target = Path(scratch) / f"{name}.gguf"
            try:
                architecture = convert(TINY[name], target)
            except Exception as error:  # of the converter: anything
                print(f"{name}: not converted: {type(error).__name__}: {error}")
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    said = difference(target, GOLDENS / "tiny" / name)
            except (PellucidError, UserWarning) as error:
                bad, said = bad + 1, 1.0
                print(f"{name} as {architecture}: {error}")
                continue
            bad += said > MOST
            print(f"{name} as {architecture}: {said:.1e} of the range{'' if said <= MOST else '  TOO FAR'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
