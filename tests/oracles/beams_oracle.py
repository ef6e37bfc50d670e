"""Beam search by transformers in float32: plain, by diverse groups, and sampled with fixed noise.

    python tests/oracles/beams_oracle.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf \\
        --out tests/goldens/sample/beams.json
    python tests/oracles/beams_oracle.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf \\
        --out tests/goldens/sample/beams.json --only diverse

The committed golden was made with torch 2.13.0 (CPU), gguf 0.19.0, accelerate 1.15.0 on Python 3.11. The first command
ran with transformers 5.24.0. The second ran with transformers 4.56.2, because later releases lack diverse groups; it
keeps the other cases unchanged. "made_with" has the versions for each kind of case.

The models: "llama" and "gemma3" of tests/goldens/model/tiny, with random prompts; "smollm2", the GGUF file in
float32 as transformers_oracle.py loads and checks it, with prompts of tests/goldens/model/smollm2.json. OUT has
one case per line:

    kind       "plain", "sampled" or "diverse"
    model      its name
    prompt     the ids
    options    options of transformers' GenerationConfig that differ from its defaults
    eos_ids    end ids. The tiny models have up to 8 of the likeliest first tokens, up to 8 of the most frequent tokens
               of a search without end ids, an unused token, or none
    pad_id     diverse only: the id that the beams of a finished group continue with while other groups run. Later
               groups count these ids among the tokens to avoid. It is an end id, as by default in transformers, or 0;
               with 0 the result does not depend on it
    noise      sampled only: {"seed": S}. Instead of a draw without replacement from p = softmax(scores), the n-th
               draw (from 0) takes the highest values of log(p) + g over the flattened (beam, vocabulary) axis,
               g = -log(-log(u)), u = Generator(Philox(key=S, counter=n)).random(size) in float64
    sequences  best first: {"ids": generated ids, including a final end id, "score": sequences_scores}

transformers 4 reports the first end id for every finished sequence of a diverse search; the golden has the end id that
was chosen. With one beam transformers uses greedy decoding by default; the script makes it run a beam search with one
beam and keeps the case if both agree.

Cases that depend on rounding are left out. A case stays if the model in float64 gives the same ids and scores within
2e-5 plus a millionth of the score, and if four runs with noise of about 1e-4 on the logits give the same ids.
transformers computes log-probabilities in float32 even for the float64 model. Over smollm2's vocabulary they are too
high by up to about 1e-5 per token. A suitable tolerance for its scores is 2e-5 times the number of tokens, with the
length penalty of the score.
"""

import argparse
import copy
import hashlib
import json
import platform
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers_oracle import load

GOLDENS = Path(__file__).parents[1] / "goldens"
PACKAGES = ("transformers", "torch", "gguf", "accelerate", "numpy")
KINDS = ("plain", "sampled", "diverse")
SEED, SHAKE, SHAKES = 3, 1e-4, 4
TINY = ("llama", "gemma3")
# Draws for a tiny model: (number where early_stopping makes a difference, with three cases each; number elsewhere).
COUNTS = {"plain": (6, 10), "sampled": (2, 3), "diverse": (4, 8)}
PENALTIES, EARLY, LENGTHS = (-1.0, 0.0, 0.5, 1.0, 2.0), (True, False, "never"), (1, 2, 5, 8, 12, 16, 20, 24)
GROUPS = ((4, 2), (6, 2), (8, 2), (6, 3), (4, 4), (8, 4))
ENDS = (("none", 0), ("unused", 1), *((how, count) for how in ("first", "used") for count in (1, 2, 4, 8)))

# Prompt of smollm2.json, beams, length penalty, early stopping, new tokens, further options.
SMOLLM2 = (
    ("capital", 2, 1.0, False, 40, {}),
    ("chat-hello", 4, 1.0, True, 40, {}),
    ("chat-system", 5, 0.5, "never", 40, {}),
    ("list-steps", 3, 2.0, False, 30, {"no_repeat_ngram_size": 3}),
    ("why-sky", 6, 0.0, "never", 24, {"repetition_penalty": 1.2}),
    ("python-def", 4, 1.0, True, 32, {}),
    ("chat-turns", 6, -1.0, False, 24, {}),
    ("french", 3, 1.0, "never", 20, {}),
    ("capital", 4, 1.0, False, 32, {"num_beam_groups": 2, "diversity_penalty": 0.5}),
    ("chat-hello", 6, 1.0, True, 40, {"num_beam_groups": 3, "diversity_penalty": 1.0}),
    ("list-steps", 4, 2.0, "never", 24, {"num_beam_groups": 4, "diversity_penalty": 1.5}),
    ("chat-turns", 6, 0.5, False, 24, {"num_beam_groups": 2, "diversity_penalty": 0.2}),
)
SMOLLM2_ENDS = [2, 0]  # <|im_end|>, <|endoftext|>


class TooFewToDraw(Exception):
    """Fewer tokens are possible than the number of draws."""


class Noise:
    """Replaces torch.multinomial by a draw without replacement with fixed noise."""

    def __init__(self, seed: int) -> None:
        self.seed, self.draws = seed, 0

    def __call__(self, p: torch.Tensor, num_samples: int) -> torch.Tensor:
        bits = np.random.Philox(key=self.seed, counter=self.draws)
        u = np.random.Generator(bits).random(p.shape[1])
        self.draws += 1
        keys = p[0].double().log().numpy() - np.log(-np.log(u))
        if np.isfinite(keys).sum() < num_samples:
            raise TooFewToDraw
        return torch.from_numpy(np.argsort(-keys, kind="stable")[None, :num_samples])


@contextmanager
def ends_noted(kind: str):
    """Collect the best candidates of a diverse search in a list: (sequence before, accumulated score, token)."""
    noted: list[tuple[list[int], float, int]] = []
    if kind != "diverse":
        yield noted
        return
    scorer = transformers.BeamSearchScorer
    process = scorer.process

    def noting(self, input_ids, scores, tokens, indices, **kwargs):
        for score, token, index in list(zip(scores[0], tokens[0], indices[0]))[: self.group_size]:
            noted.append((input_ids[index].tolist(), float(score), int(token)))
        return process(self, input_ids, scores, tokens, indices, **kwargs)

    with patch.object(scorer, "process", noting):
        yield noted


def search(model, case: dict) -> list[dict]:
    """The case's sequences with their scores, best first."""
    options, ends = case["options"], case["eos_ids"]
    config = GenerationConfig(
        **options,
        eos_token_id=ends or None,
        pad_token_id=case.get("pad_id"),
        return_dict_in_generate=True,
        output_scores=True,
    )
    prompt = torch.tensor([case["prompt"]])
    arguments = {"attention_mask": torch.ones_like(prompt), "generation_config": config}
    if options["num_beams"] == 1:
        arguments["custom_generate"] = type(model)._beam_search
    noise = Noise(case["noise"]["seed"]) if "noise" in case else None
    with patch.object(torch, "multinomial", noise or torch.multinomial), ends_noted(case["kind"]) as noted:
        out = model.generate(prompt, **arguments)
    if noise and not noise.draws:
        raise SystemExit("transformers did not draw by torch.multinomial")
    found = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        length = next((i for i in range(prompt.shape[1], len(row)) if row[i] in ends), len(row) - 1) + 1
        ids, divisor = row[prompt.shape[1] : length], (length - prompt.shape[1]) ** options["length_penalty"]
        if noted and ids[-1] in ends:
            same = [(s, t) for before, s, t in noted if before == row[: length - 1] and t in ends]
            ids[-1] = min(same, key=lambda x: abs(x[0] / divisor - score))[1]
        found.append({"ids": ids, "score": round(score, 6)})
    return found


def greedy(model, case: dict) -> list[int]:
    """The ids that transformers generates by default for a case with one beam: greedy decoding."""
    prompt = torch.tensor([case["prompt"]])
    config = GenerationConfig(**case["options"], eos_token_id=case["eos_ids"] or None)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return out[0, prompt.shape[1] :].tolist()


def in_double(model):
    """The model with float64 weights. Its logits are rounded to float32, because transformers scores in float32."""

    def rounded(module, args, out):
        out.logits = out.logits.float()

    double = copy.deepcopy(model).double()
    double.register_forward_hook(rounded)
    return double


@contextmanager
def shaken(model, seed: int):
    """Add noise to the model's logits."""
    generator = torch.Generator().manual_seed(seed)

    def shake(module, args, out):
        out.logits += SHAKE * torch.randn(out.logits.shape, generator=generator, dtype=out.logits.dtype)

    handle = model.register_forward_hook(shake)
    try:
        yield
    finally:
        handle.remove()


def settled(single, double, case: dict) -> list[dict] | None:
    """The case's sequences, or None if they depend on rounding or, with one beam, differ from greedy decoding."""
    found, exact = search(single, case), search(double, case)
    ids = [s["ids"] for s in found]
    if ids != [s["ids"] for s in exact] or (case["options"]["num_beams"] == 1 and ids != [greedy(single, case)]):
        return None
    if any(abs(a["score"] - b["score"]) > 2e-5 + 1e-6 * abs(b["score"]) for a, b in zip(found, exact)):
        return None
    for seed in range(SHAKES):
        other = {"pad_id": seed} if case.get("pad_id") == 0 else {}
        with shaken(single, seed):
            if [s["ids"] for s in search(single, case | other)] != ids:
                return None
    return found


def ends_for(model, case: dict, how: str, count: int) -> list[int]:
    """End ids for a case: the likeliest first tokens, the most frequent tokens of its beams, or an unused token."""
    if how == "first":
        return model(torch.tensor([case["prompt"]])).logits[0, -1].topk(count).indices.tolist()
    everything = {"num_return_sequences": case["options"]["num_beams"]}
    free = search(model, case | {"options": case["options"] | everything})
    used = [token for token, _ in Counter(t for s in free for t in s["ids"]).most_common()]
    if how == "unused":
        return [next(t for t in range(3, model.config.vocab_size) if t not in used)]
    return used[:count]


def drawn(kind: str, rng: np.random.Generator) -> dict:
    """Random options of a search."""

    def one(values):
        return values[rng.integers(len(values))]

    beams, groups = one(GROUPS) if kind == "diverse" else (int(rng.integers(1, 9)), 1)
    if kind == "sampled":
        beams = 2 + beams // 2
    options = {
        "num_beams": beams,
        "num_return_sequences": int(one((beams, rng.integers(1, beams + 1)))),
        "max_new_tokens": one(LENGTHS),
        "length_penalty": one(PENALTIES),
        "early_stopping": one(EARLY) if beams > 1 else True,
    }
    if kind == "diverse":
        options |= {"num_beam_groups": groups, "diversity_penalty": one((0.2, 0.5, 1.0, 1.5))}
    if kind == "sampled":
        options |= {"do_sample": True, "temperature": one((0.7, 1.0, 1.5)), "top_k": one((0, 0, 24, 50))}
        options |= one(({}, {"top_p": 0.95}))
    options |= one(({}, {}, {}, {"repetition_penalty": one((0.8, 1.2, 1.5))}))
    return options | one(({}, {}, {}, {"no_repeat_ngram_size": one((2, 3))}))


def tiny_cases(name: str, kind: str):
    """Yield the cases of a kind for a tiny model.

    If early_stopping makes a difference, each setting has a case. Cases that depend on rounding are left out.
    """
    folder = GOLDENS / "model" / "tiny" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config = GenerationConfig()
    double = in_double(model)
    rng = np.random.default_rng([SEED, KINDS.index(kind), TINY.index(name)])
    wanted = dict(zip((True, False), COUNTS[kind]))
    while any(wanted.values()):
        prompt = rng.integers(3, model.config.vocab_size, rng.integers(3, 13)).tolist()
        case = {"kind": kind, "model": name, "prompt": prompt, "options": drawn(kind, rng), "eos_ids": []}
        if kind == "sampled":
            case["noise"] = {"seed": int(rng.integers(1 << 32))}
        ends, pad = ENDS[rng.integers(len(ENDS))], rng.integers(2)
        try:
            case["eos_ids"] = ends_for(model, case, *ends)
            if kind == "diverse":
                case["pad_id"] = case["eos_ids"][0] if pad and case["eos_ids"] else 0
            cases = [case | {"options": case["options"] | {"early_stopping": early}} for early in EARLY]
            found = [search(model, case) for case in cases]
            differ = any(sequences != found[0] for sequences in found)
            if not wanted[differ]:
                continue
            cases = cases if differ else [case]
            found = [settled(model, double, case) for case in cases]
        except TooFewToDraw:
            continue
        if None not in found:
            wanted[differ] -= 1
            yield from (case | {"sequences": sequences} for case, sequences in zip(cases, found))


def smollm2_cases(path: Path, kind: str):
    """Yield the cases of a kind for SmolLM2."""
    if kind == "sampled":
        return
    if transformers.__version__ < "5":  # transformers 4 has rope_theta instead of rope_parameters
        transformers.LlamaConfig.rope_parameters = property(lambda config: {"rope_theta": config.rope_theta})
    model = load(path)[0]
    model.generation_config = GenerationConfig()
    double = in_double(model)
    golden = json.loads((GOLDENS / "model" / "smollm2.json").read_text(encoding="utf-8"))
    prompts = {prompt["name"]: prompt["ids"] for prompt in golden["prompts"]}
    for name, beams, penalty, early, length, more in SMOLLM2:
        if ("num_beam_groups" in more) != (kind == "diverse"):
            continue
        options = {
            "num_beams": beams,
            "num_return_sequences": min(beams, 3),
            "max_new_tokens": length,
            "length_penalty": penalty,
            "early_stopping": early,
        } | more
        case = {"kind": kind, "model": "smollm2", "prompt": prompts[name], "options": options, "eos_ids": SMOLLM2_ENDS}
        if kind == "diverse":
            case["pad_id"] = SMOLLM2_ENDS[0]
        found = settled(model, double, case)
        print(f"smollm2, {name}: {'left out' if found is None else [len(s['ids']) for s in found]}")
        if found:
            yield case | {"sequences": found}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, required=True, help="GGUF file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=KINDS, help="one kind; plain and sampled otherwise")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kinds = [args.only] if args.only else ["plain", "sampled"]
    golden = {"made_with": {}, "smollm2": {}, "cases": []}
    if args.out.exists():
        golden = json.loads(args.out.read_text(encoding="utf-8"))
    golden["smollm2"] = {"file": args.smollm2.name, "sha256": hashlib.sha256(args.smollm2.read_bytes()).hexdigest()}
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    for kind in kinds:
        cases = [case for name in TINY for case in tiny_cases(name, kind)]
        cases += smollm2_cases(args.smollm2, kind)
        golden["made_with"][kind] = versions
        golden["cases"] = [case for case in golden["cases"] if case["kind"] != kind] + cases
        ended = sum(s["ids"][-1] in case["eos_ids"] for case in cases for s in case["sequences"])
        total = sum(len(case["sequences"]) for case in cases)
        print(f"{kind}: {len(cases)} cases, {ended} of {total} sequences ended")
    golden["cases"].sort(key=lambda case: KINDS.index(case["kind"]))
    head = json.dumps({k: v for k, v in golden.items() if k != "cases"})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in golden["cases"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(f'{head[:-1]}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
