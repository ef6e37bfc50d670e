"""Greedy answers and beam searches of tiny encoder-decoders by transformers, on 200 sources each.

    python tests/oracles/translations_oracle.py --out tests/goldens/model/translations.json

The models are in tests/goldens/model/sources (sources_oracle.py). The committed golden was made with
transformers 5.24.0, torch 2.13.0 (CPU) on Python 3.11. OUT maps the name of a model to its cases:

    seed      the source has ``drawn(seed)``: its length and its ids
    ends      the ids that end an answer: the end id of the model, and ids that the model chooses often
    options   options of transformers' GenerationConfig; "max_new_tokens" and "no_repeat_ngram_size" hold for both
    greedy    the ids of the greedy answer, including an end id
    beams     the best answer of a search with four beams: its ids and ``sequences_scores``

A case that depends on rounding is left out: the model in float64 gives the same ids.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from sources_oracle import MODELS, saved

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import drawn_source

NAMES, CASES = (("marian", "t5", "bart-odd", "m2m_100"), {"marian": 200, "t5": 200, "bart-odd": 40, "m2m_100": 40})
PENALTIES, EARLY, LENGTHS, REPEATS = (0.5, 1.0, 2.0), (True, False, "never"), (4, 8, 12, 16), (0, 2, 3)


def run(model: Any, source: list[int], ends: list[int], options: dict[str, Any], beams: int) -> tuple[list[int], float]:
    """The generated ids without the first token, and the score of the search."""
    both = {name: options[name] for name in ("max_new_tokens", "no_repeat_ngram_size")}
    kind = options if beams > 1 else both
    out = model.generate(
        torch.tensor([source]), num_beams=beams, do_sample=False, eos_token_id=ends,
        return_dict_in_generate=True, output_scores=True, **kind,
    )  # fmt: skip
    ids = out.sequences[0, 1:].tolist()
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: last + 1], float(out.sequences_scores[0]) if beams > 1 else 0.0


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found: dict[str, Any] = {"made_with": {name: version(name) for name in ("transformers", "torch", "numpy")}}
    for name in NAMES:
        with TemporaryDirectory() as folder:
            model = saved(Path(folder), name, *MODELS[name])
            exact = transformers.AutoModelForSeq2SeqLM.from_pretrained(
                folder, dtype=torch.float64, attn_implementation="eager"
            ).eval()
        own, cases, seed = model.config.eos_token_id, [], 0
        while len(cases) < CASES[name]:
            seed += 1
            rng, source = np.random.default_rng([24, seed]), drawn_source(seed)
            options = {
                "max_new_tokens": int(rng.choice(LENGTHS)),
                "no_repeat_ngram_size": int(rng.choice(REPEATS)),
                "length_penalty": float(rng.choice(PENALTIES)),
                "early_stopping": EARLY[rng.integers(len(EARLY))],
            }
            often, _ = run(model, source, [own], options, 1)
            further = rng.choice(sorted({*often, *rng.integers(3, 120, 6).tolist()}), rng.integers(0, 4), replace=False)
            ends = [own, *(int(token) for token in further if token != own)]
            greedy, beams = (run(model, source, ends, options, count) for count in (1, 4))
            again = [run(exact, source, ends, options, count) for count in (1, 4)]
            if [greedy[0], beams[0]] != [ids for ids, _ in again] or abs(again[1][1] - beams[1]) > 1e-5:
                continue
            cases.append(
                {
                    "seed": seed,
                    "ends": ends,
                    "options": options,
                    "greedy": greedy[0],
                    "beams": {"ids": beams[0], "score": round(beams[1], 7)},
                }
            )
        found[name] = cases
        lengths = [len(case["greedy"]) for case in cases]
        print(f"{name}: {seed} sources, {len(cases)} cases, answers of {min(lengths)} to {max(lengths)} tokens")
    lines = ",\n".join(
        f"{json.dumps(name)}: "
        + ("[\n" + ",\n".join(map(json.dumps, one)) + "\n]" if isinstance(one, list) else json.dumps(one))
        for name, one in found.items()
    )
    args.out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
