"""The results of single sampler steps of transformers and llama.cpp on given logits.

    python tests/oracles/samplers_oracle.py --by transformers --out tests/goldens/sample/steps.json
    python tests/oracles/samplers_oracle.py --by llama.cpp --model SmolLM2-135M-Instruct.Q4_1.gguf \\
        --out tests/goldens/sample/steps.json

An existing OUT keeps the other peer's cases; without --by the script makes both. llama.cpp needs the package llama_cpp,
and the model for its vocabulary only. The committed golden was made with transformers 5.24.0 and torch 2.13.0 (CPU),
and with llama_cpp_python 0.3.36 on llama.cpp 0.5.0-dev, commit 0c1e570, a generic Release build; numpy 2.4.6 and
Python 3.11 for both. The logits come from numpy's PCG64 with the seed below.

OUT.json has `made_with` (versions per peer), `logits` (by name; float32 written exactly, null for −∞) and `cases`:

    by, step       the peer, and the step: its processor or sampler; "chain" applies options["samplers"] in order
    options        Pellucid's names; min_keep is the peer's default (transformers 1, llama.cpp 0)
    logits         name, or "zeros": as many zeros as the model's vocabulary has tokens
    prompt, generated    ids; transformers' steps see both, llama.cpp's have accepted the generated ones
    random         null: no step depends on a random number
    kept           ids with a finite logit after the step, ascending; null for "dry"
    logits_after   their logits (float32, nine digits)
    changed        "dry" instead: id → the value that the step added to its logit
    turns, chosen  "mirostat": the logits' names per drawn token, and the tokens that llama.cpp drew; kept and
                   logits_after are lists with one entry per token, the candidates before the draw

transformers computes in float32, as in generate. A case is left out if the peer's result is not well defined: if it
depends on the order of equal logits (top_p and top_h with ties at the border, and in llama.cpp also top_k, typical, xtc
and temperature 0), if float64 (transformers) or a threshold nudged by 1e-5 gives another set (except for a few borders
that are exact in floating point), or if llama.cpp's typical meets a logit of −∞, which makes its entropy NaN.
Three peculiarities are kept: llama.cpp's dynamic temperature counts candidates with a logit of −∞ in the largest
possible entropy, transformers' top_h considers only the 100 most likely tokens, and llama.cpp disables DRY if the
window is not longer than the allowed length.
"""

import argparse
import ctypes
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

SEED, NUDGE, TURNS = 31, 1e-5, 8

# Steps that depend on the distribution only, with the options of each peer. The cases take every fourth combination
# with the logits below.
TRANSFORMERS = {
    "temperature": [{"temperature": t} for t in (0.01, 0.3, 0.8, 1.0, 2.5)],
    "top_k": [{"top_k": k} for k in (1, 3, 10, 40, 5000)],
    "top_p": [{"top_p": p} for p in (0.0, 0.3, 0.8, 0.95, 0.999, 1.0)],
    "min_p": [{"min_p": p} for p in (0.0, 0.01, 0.1, 0.5, 1.0)],
    "typical": [{"typical_p": p} for p in (0.02, 0.3, 0.6, 0.9, 0.99)],
    "epsilon": [{"epsilon_cutoff": e} for e in (0.0003, 0.003, 0.02, 0.1, 0.6)],
    "eta": [{"eta_cutoff": e} for e in (0.0003, 0.004, 0.02, 0.2, 0.9)],
    "top_h": [{"top_h": h} for h in (0.05, 0.3, 0.5, 0.8, 0.97)],
}
LLAMACPP = {
    "temperature": [
        *({"temperature": t} for t in (0.0, 0.01, 0.8, 1.0, 2.5)),
        *(
            {"temperature": t, "dynatemp_range": r, "dynatemp_exponent": e}
            for t, r, e in ((1.0, 0.5, 1.0), (0.7, 0.7, 1.0), (1.2, 0.3, 2.0), (0.5, 2.0, 0.5), (0.9, 0.0, 3.0))
        ),
    ],
    "top_k": [{"top_k": k} for k in (0, 1, 3, 10, 40, 5000)],
    "top_p": [{"top_p": p} for p in (0.0, 0.2, 0.5, 0.9, 0.99, 1.0)],
    "min_p": [{"min_p": p} for p in (0.0, 0.003, 0.05, 0.3, 1.0)],
    "typical": [{"typical_p": p} for p in (0.02, 0.2, 0.5, 0.95, 1.0)],
    "top_n_sigma": [{"top_n_sigma": n} for n in (0.0, 0.3, 1.0, 1.5, 3.0)],
    "xtc": [
        *({"xtc_probability": 1.0, "xtc_threshold": t} for t in (0.005, 0.05, 0.1, 0.3, 0.5, 0.6)),
        {"xtc_probability": 0.0, "xtc_threshold": 0.05},
    ],
}
THRESHOLDS = {"top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "top_n_sigma", "xtc_threshold"}
CHAIN = {
    "repetition_penalty": 1.3,
    "temperature": 1.5,
    "top_k": 20,
    "top_p": 0.97,
    "min_p": 0.01,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.03,
    "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p", "typical", "epsilon", "eta"],
}
CHAIN_LLAMACPP = {
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "repeat_last_n": 6,
    "top_n_sigma": 1.6,
    "top_k": 5,
    "typical_p": 0.95,
    "top_p": 0.95,
    "min_p": 0.02,
    "temperature": 0.8,
    "samplers": ["penalties", "top_n_sigma", "top_k", "typical", "top_p", "min_p", "temperature"],
}
PROMPT, GENERATED = [3, 5, 5, 9, 1, 0], [5, 2, 9, 9, 11, 3, 5]
LOOP = [4, 7, 4, 7, 7, 4, 7, 4, 7]

DRY = {
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 256,
    "dry_sequence_breakers": ["\n", ":", '"', "*"],
}
WORDS = " red green blue white black brown pink gray"  # each word is one token
CAT = "The cat sat on the mat and the cat sat on the"
LINES = "one two three\nfour five six. one two three\nfour five"
BRANCHES = "a small red box, a small red bag, a very small red box, a small green box; see a small red"
DIALOGUE = "Name: Ada\nAge: 36\n\nName: Bob\nAge: 41\n\nName: Eve\nAge"
QUOTES = 'He said "we go home now" and she said "we go home now" and they said "we go home'
ACCENTS = "le café noir, le café noir, le café"


def make_logits() -> dict[str, np.ndarray]:
    """The logits of the cases, float32 by name."""

    def rng(number: int) -> np.random.Generator:
        return np.random.default_rng([SEED, number])

    infinite = 3 * rng(3).standard_normal(32)
    infinite[rng(4).random(32) < 0.3] = -np.inf
    huge = 3 * rng(5).standard_normal(32)
    huge[11] = huge.max() + 60
    x = {
        "normal24": 3 * rng(0).standard_normal(24),
        "normal64": 3 * rng(1).standard_normal(64),
        "normal2000": 3 * rng(2).standard_normal(2000),
        "ties32": rng(6).integers(-2, 4, 32),
        "inf32": infinite,
        "equal16": np.full(16, 0.75),
        "huge32": huge,
        "flat48": 0.05 * rng(7).standard_normal(48),
        "two": np.array([0.4, -1.1]),
        "pair": np.array([4.0, 0.0]),
    }
    x |= {f"turn{i}": 2.5 * rng(10 + i).standard_normal(40) for i in range(TURNS)}
    return {name: value.astype(np.float32) for name, value in x.items()}


LOGITS = make_logits()
KINDS = [name for name in LOGITS if not name.startswith("turn")]


def case(
    step: str, options: dict, logits: str | None, prompt: Sequence[int] = (), generated: Sequence[int] = ()
) -> dict:
    return {
        "step": step,
        "options": options,
        "logits": logits,
        "prompt": list(prompt),
        "generated": list(generated),
        "random": None,
    }


def mixed(steps: dict[str, list[dict]]) -> Iterator[dict]:
    """Yield every fourth combination of options and logits. The start differs for each step and its options."""
    for s, (step, choices) in enumerate(steps.items()):
        for j, options in enumerate(choices):
            for i, name in enumerate(KINDS):
                if (i + j + s) % 4 == 0:
                    yield case(step, options, name)


def numbers(x: np.ndarray) -> list[float]:
    return [float(f"{v:.9g}") for v in x.tolist()]


def outcome(after: np.ndarray) -> dict:
    kept = np.flatnonzero(np.isfinite(after))
    return {"kept": kept.tolist(), "logits_after": numbers(after[kept])}


def nudged(options: dict) -> Iterator[dict]:
    """Yield the options with one threshold slightly lower or higher; 0 and 1 stay."""
    for key in sorted(THRESHOLDS & options.keys()):
        for factor in (1 - NUDGE, 1 + NUDGE):
            if key == "top_n_sigma" or options[key] < 1:
                yield options | {key: options[key] * factor}


class Transformers:
    """transformers' logits processors."""

    def __init__(self) -> None:
        import torch
        from transformers.generation import logits_process

        self.torch, self.made = torch, logits_process
        self.made_with = {name: version(name) for name in ("transformers", "torch", "numpy")}

    def cases(self) -> Iterator[dict]:
        yield from mixed(TRANSFORMERS)
        yield case("top_k", {"top_k": 1}, "ties32")
        yield case("min_p", {"min_p": 1.0}, "ties32")
        yield case("epsilon", {"epsilon_cutoff": 0.0625}, "equal16")
        for name, penalty in (
            ("normal24", 1.1),
            ("normal64", 1.3),
            ("normal64", 0.8),
            ("ties32", 2.0),
            ("inf32", 1.5),
            ("flat48", 1.0),
            ("huge32", 10.0),
        ):
            yield case("penalties", {"repetition_penalty": penalty, "repeat_last_n": -1}, name, PROMPT, GENERATED)
        yield case("penalties", {"repetition_penalty": 1.2, "repeat_last_n": -1}, "normal24", PROMPT)
        for n, prompt, generated in (
            (1, PROMPT, GENERATED),
            (2, PROMPT, GENERATED),
            (3, PROMPT, [7, 3, 5]),
            (3, [], LOOP),
            (2, LOOP, [7]),
            (4, LOOP, LOOP),
            (3, [8, 8], [8, 8, 8]),
            (5, [1, 2], [3, 1]),
            (1, [6], []),
            (2, [6], []),
        ):
            name = KINDS[(0, 1, 4)[n % 3]]
            yield case("no_repeat_ngram", {"no_repeat_ngram_size": n}, name, prompt, generated)
        for banned, prompt, generated in (
            ([[7]], PROMPT, GENERATED),
            ([[7], [0], [23]], [], [1]),
            ([[3, 5, 8]], PROMPT, GENERATED),
            ([[5, 8], [3, 5, 9], [11, 3, 5, 10], [3, 6, 12]], PROMPT, GENERATED),
            ([[1, 0, 5, 2, 9, 9, 11, 3, 5, 14]], PROMPT, GENERATED),
            ([[4, 7, 4, 2], [7, 7, 3], [4, 2]], LOOP, []),
            ([[4, 7, 2]], [], [4, 7]),
            ([[4, 7, 2]], [], [7]),
            ([[7], [5, 7]], PROMPT, GENERATED),
        ):
            yield case("banned", {"banned": banned}, "normal24", prompt, generated)
        for name, bias in (
            ("normal24", {"0": 5.0}),
            ("normal64", {"3": -100.0, "10": 2.5, "63": -0.125}),
            ("inf32", {str(i): 1.5 for i in range(0, 32, 3)}),
            ("pair", {"1": 4.0}),
        ):
            yield case("logit_bias", {"logit_bias": bias}, name, PROMPT[-1:], GENERATED[1:2])
        for least, prompt, generated in ((3, [1, 4], []), (3, [1, 4], [5, 6]), (3, [1, 4], [5, 6, 7]), (0, [1], [])):
            yield case("min_new_tokens", {"min_new_tokens": least, "eos_ids": [2]}, "normal24", prompt, generated)
        yield case("min_new_tokens", {"min_new_tokens": 9, "eos_ids": [0, 5, 31]}, "inf32", PROMPT, GENERATED)
        for name, options in (
            ("normal24", {}),
            ("normal64", {}),
            ("normal2000", {"top_k": 50, "temperature": 0.7}),
            ("normal64", {"temperature": 4.0, "top_p": 0.9, "typical_p": 0.5}),
            ("inf32", {}),
            ("huge32", {}),
            ("flat48", {"repetition_penalty": 5.0, "top_k": 48, "top_p": 1.0, "typical_p": 0.99}),
            ("normal24", {"min_p": 0.2, "epsilon_cutoff": 0.1, "temperature": 2.0}),
            ("normal64", {"eta_cutoff": 0.3, "epsilon_cutoff": 0.0001, "temperature": 3.0}),
        ):
            yield case("chain", CHAIN | options, name, PROMPT, GENERATED)

    def processor(self, step: str, o: dict, prompt: int) -> Callable:
        """The processor of a step; ``prompt`` is the prompt's length."""
        make: dict[str, Callable] = {
            "temperature": lambda: self.made.TemperatureLogitsWarper(o["temperature"]),
            "top_k": lambda: self.made.TopKLogitsWarper(o["top_k"]),
            "top_p": lambda: self.made.TopPLogitsWarper(o["top_p"]),
            "min_p": lambda: self.made.MinPLogitsWarper(o["min_p"]),
            "typical": lambda: self.made.TypicalLogitsWarper(o["typical_p"]),
            "epsilon": lambda: self.made.EpsilonLogitsWarper(o["epsilon_cutoff"]),
            "eta": lambda: self.made.EtaLogitsWarper(o["eta_cutoff"]),
            "top_h": lambda: self.made.TopHLogitsWarper(o["top_h"]),
            "penalties": lambda: self.made.RepetitionPenaltyLogitsProcessor(o["repetition_penalty"]),
            "no_repeat_ngram": lambda: self.made.NoRepeatNGramLogitsProcessor(o["no_repeat_ngram_size"]),
            "banned": lambda: self.made.NoBadWordsLogitsProcessor(o["banned"]),
            "logit_bias": lambda: self.made.SequenceBiasLogitsProcessor(
                {(int(i),): bias for i, bias in o["logit_bias"].items()}
            ),
            "min_new_tokens": lambda: self.made.MinNewTokensLengthLogitsProcessor(
                prompt, o["min_new_tokens"], o["eos_ids"]
            ),
        }
        return make[step]()

    def apply(self, c: dict, x: np.ndarray, options: dict, ids: list[int]) -> np.ndarray:
        scores, history = self.torch.from_numpy(x)[None], self.torch.tensor([ids], dtype=self.torch.int64)
        for step in options.get("samplers", [c["step"]]):
            scores = self.processor(step, options, len(c["prompt"]))(history, scores)
        return scores[0].numpy()

    def run(self, c: dict) -> tuple[dict, bool]:
        x, ids, options = LOGITS[c["logits"]], c["prompt"] + c["generated"], c["options"]
        after = self.apply(c, x, options, ids)
        others = [self.apply(c, x.astype(np.float64), options, ids)]
        if c["step"] in TRANSFORMERS or c["step"] == "chain":
            others += [self.apply(c, x, o, ids) for o in nudged(options)]
            for order in orders(len(x)):
                place = np.argsort(order)  # old id → new id
                other = np.empty_like(after)
                other[order] = self.apply(c, x[order], options, place[ids].tolist())
                others.append(other)
        return outcome(after), settled(c, after, others)


class LlamaCpp:
    """llama.cpp's samplers and the vocabulary of a model."""

    def __init__(self, path: Path) -> None:
        import llama_cpp as lc

        self.lc, self.silent = lc, lc.llama_log_callback(lambda level, text, data: None)
        lc.llama_log_set(self.silent, None)
        lc.llama_backend_init()
        params = lc.llama_model_default_params()
        params.vocab_only = True
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit("llama.cpp did not load the model")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.size = lc.llama_vocab_n_tokens(self.vocab)
        commit = lc.llama_cpp._lib.ggml_commit
        commit.restype = ctypes.c_char_p
        self.made_with = {
            "llama_cpp_python": lc.__version__,
            "llama.cpp": lc.llama_version().decode(),
            "commit": commit().decode(),
            "numpy": version("numpy"),
            "model": {
                "file": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "vocabulary": self.size,
            },
        }

    def cases(self) -> Iterator[dict]:
        yield from mixed(LLAMACPP)
        yield case("min_p", {"min_p": 1.0}, "ties32")
        yield case("top_n_sigma", {"top_n_sigma": 2.0}, "pair")
        yield case("top_n_sigma", {"top_n_sigma": 1.0}, "inf32")
        for name, threshold in (
            ("normal24", 0.02),
            ("normal64", 0.08),
            ("normal2000", 0.004),
            ("inf32", 0.03),
            ("flat48", 0.0205),
            ("two", 0.15),
        ):
            yield case("xtc", {"xtc_probability": 1.0, "xtc_threshold": threshold}, name)
        for name, repeat, frequency, presence, last in (
            ("normal24", 1.1, 0.0, 0.0, 64),
            ("normal64", 1.3, 0.0, 0.0, 3),
            ("normal64", 0.8, 0.0, 0.0, 64),
            ("ties32", 2.0, 0.0, 0.0, 64),
            ("ties32", 1.0, 0.25, 0.0, 64),
            ("normal24", 1.0, 0.7, 0.0, 4),
            ("normal24", 1.0, 0.0, 0.6, 5),
            ("inf32", 1.2, 0.3, 0.4, 7),
            ("inf32", 1.2, -0.3, -0.4, 64),
            ("flat48", 1.5, 0.1, 0.1, 1),
            ("flat48", 1.5, 0.1, 0.1, 0),
            ("huge32", 10.0, 2.0, 2.0, 6),
        ):
            options = {
                "repetition_penalty": repeat,
                "frequency_penalty": frequency,
                "presence_penalty": presence,
                "repeat_last_n": last,
            }
            yield case("penalties", options, name, generated=GENERATED)
        for name, bias in (
            ("normal24", {"0": 5.0}),
            ("normal64", {"3": -100.0, "10": 2.5, "63": -0.125}),
            ("inf32", {str(i): 1.5 for i in range(0, 32, 3)}),
            ("pair", {"1": 4.0}),
        ):
            yield case("logit_bias", {"logit_bias": bias}, name)
        for name, options in (
            ("normal24", {}),
            ("normal64", {}),
            ("normal64", {"top_n_sigma": 3.0, "top_k": 10, "temperature": 1.7}),
            ("normal2000", {"top_n_sigma": 2.0, "top_k": 40, "typical_p": 0.7}),
            ("inf32", {"top_k": 4}),
            ("inf32", {"typical_p": 1.0, "top_k": 0, "repeat_last_n": 0}),
            ("huge32", {"top_k": 1}),
            ("flat48", {"top_n_sigma": 0.0, "top_k": 0, "presence_penalty": 1.0}),
            ("normal24", {"top_n_sigma": 0.0, "top_k": 12, "top_p": 0.6, "min_p": 0.2}),
            ("normal64", {"temperature": 0.0, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0}),
        ):
            yield case("chain", CHAIN_LLAMACPP | options, name, generated=GENERATED)
        for text, options in self.dry():
            yield case("dry", DRY | options, "zeros", generated=self.tokenize(text))
        for tau, eta, turns in ((1.0, 0.1, 8), (2.0, 0.3, 16), (3.0, 1.0, 16), (0.5, 0.05, 8), (2.5, 0.5, 24)):
            options = {"mirostat": 2, "mirostat_tau": tau, "mirostat_eta": eta}
            yield case("mirostat", options, None) | {"turns": [f"turn{i % TURNS}" for i in range(turns)]}

    @staticmethod
    def dry() -> Iterator[tuple[str, dict]]:
        """Yield texts as token history, with the options that differ from DRY."""
        for text in (CAT, LINES, BRANCHES, DIALOGUE, QUOTES, ACCENTS):
            for length in (1, 2, 4):
                yield text, {"dry_allowed_length": length}
        for text in (LINES, DIALOGUE, QUOTES):
            yield text, {"dry_sequence_breakers": []}
        yield BRANCHES, {"dry_sequence_breakers": [","]}
        yield BRANCHES, {"dry_sequence_breakers": [" small red box", "ll"], "dry_allowed_length": 1}
        yield CAT, {"dry_sequence_breakers": [" sat on"]}
        yield CAT, {"dry_sequence_breakers": ["cat sat"], "dry_allowed_length": 1}
        yield ACCENTS, {"dry_sequence_breakers": ["é"], "dry_allowed_length": 1}
        yield "*" + CAT, {"dry_base": 1.0}
        yield CAT, {"dry_base": 0.9}
        yield CAT, {"dry_multiplier": 0.0}
        yield CAT, {"dry_penalty_last_n": 0}
        yield CAT, {"dry_multiplier": -0.5, "dry_base": 1.1}
        yield "", {}
        yield " red red", {}
        yield " red red red", {"dry_allowed_length": 1}
        yield " red" * 12, {}
        yield " red" * 300, {"dry_penalty_last_n": 512}
        yield " red" * 12 + " green" + " red" * 7, {}
        # The repetition of eight tokens reaches the border of the window, or is cut there.
        for last in (8, 9, 10, 12, 16, 17, 18):
            yield WORDS + WORDS, {"dry_penalty_last_n": last, "dry_allowed_length": 1}
        yield WORDS + " and" + WORDS, {"dry_penalty_last_n": 13, "dry_allowed_length": 4}
        yield WORDS + " and" + WORDS, {"dry_penalty_last_n": 12, "dry_allowed_length": 4}
        yield WORDS + " and" + WORDS, {"dry_penalty_last_n": 16, "dry_allowed_length": 4}

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (self.lc.llama_token * (len(data) + 1))()
        n = self.lc.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:n])

    def sampler(self, step: str, o: dict, V: int) -> object:
        lc = self.lc
        if step == "penalties":
            penalties = o["repetition_penalty"], o["frequency_penalty"], o["presence_penalty"]
            return lc.llama_sampler_init_penalties(V, o["repeat_last_n"], *penalties)
        if step == "logit_bias":
            bias = [lc.llama_logit_bias(int(i), b) for i, b in o["logit_bias"].items()]
            return lc.llama_sampler_init_logit_bias(V, len(bias), (lc.llama_logit_bias * len(bias))(*bias))
        if step == "dry":
            breakers = [text.encode() for text in o["dry_sequence_breakers"]]
            settings = o["dry_multiplier"], o["dry_base"], o["dry_allowed_length"], o["dry_penalty_last_n"]
            texts = (ctypes.c_char_p * len(breakers))(*breakers)
            return lc.llama_sampler_init_dry(self.vocab, *settings, texts, len(breakers))
        make: dict[str, Callable] = {
            "temperature": lambda: lc.llama_sampler_init_temp_ext(
                o["temperature"], o.get("dynatemp_range", 0.0), o.get("dynatemp_exponent", 1.0)
            ),
            "top_k": lambda: lc.llama_sampler_init_top_k(o["top_k"]),
            "top_p": lambda: lc.llama_sampler_init_top_p(o["top_p"], 0),
            "min_p": lambda: lc.llama_sampler_init_min_p(o["min_p"], 0),
            "typical": lambda: lc.llama_sampler_init_typical(o["typical_p"], 0),
            "top_n_sigma": lambda: lc.llama_sampler_init_top_n_sigma(o["top_n_sigma"]),
            "xtc": lambda: lc.llama_sampler_init_xtc(o["xtc_probability"], o["xtc_threshold"], 0, SEED),
            "mirostat": lambda: lc.llama_sampler_init_mirostat_v2(SEED, o["mirostat_tau"], o["mirostat_eta"]),
        }
        return make[step]()

    def candidates(self, x: np.ndarray, order: np.ndarray) -> ctypes.Structure:
        """The array of candidates in the given order of ids."""
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        items = np.zeros(len(x), kind)
        items["id"], items["logit"] = order, x[order]
        data = (self.lc.llama_token_data * len(x)).from_buffer(items)
        return self.lc.llama_token_data_array(data, len(x), -1, False)

    @staticmethod
    def read(array: ctypes.Structure, V: int) -> np.ndarray:
        """Logits by id; −∞ for ids that are no longer candidates."""
        after = np.full(V, -np.inf, np.float32)
        for i in range(array.size):
            after[array.data[i].id] = array.data[i].logit
        return after

    def apply(self, c: dict, x: np.ndarray, options: dict, order: np.ndarray) -> np.ndarray | None:
        """The logits after the step; None if the result depends on a NaN."""
        array = self.candidates(x, order)
        for step in options.get("samplers", [c["step"]]):
            if (
                step == "typical"
                and options["typical_p"] < 1
                and not all(np.isfinite(array.data[i].logit) for i in range(array.size))
            ):
                return None
            sampler = self.sampler(step, options, len(x))
            for token in c["generated"]:
                self.lc.llama_sampler_accept(sampler, token)
            self.lc.llama_sampler_apply(sampler, ctypes.byref(array))
            self.lc.llama_sampler_free(sampler)
        return self.read(array, len(x))

    def run(self, c: dict) -> tuple[dict, bool]:
        if c["step"] == "mirostat":
            return self.turns(c), True
        x = np.zeros(self.size, np.float32) if c["logits"] == "zeros" else LOGITS[c["logits"]]
        ascending = np.arange(len(x))
        after = self.apply(c, x, c["options"], ascending)
        if c["step"] == "dry":
            changed = np.flatnonzero(after)
            deltas = zip(changed.tolist(), numbers(after[changed]))
            return {"kept": None, "changed": {str(i): delta for i, delta in deltas}}, True
        if after is None:
            return {}, False
        others = [self.apply(c, x, o, ascending) for o in nudged(c["options"])]
        others += [self.apply(c, x, c["options"], order) for order in orders(len(x))]
        return outcome(after), settled(c, after, others)

    def turns(self, c: dict) -> dict:
        """Run mirostat for several tokens: it draws inside its step and leaves the candidates that it drew from."""
        sampler = self.sampler("mirostat", c["options"], 0)
        chosen, sets = [], []
        for name in c["turns"]:
            x = LOGITS[name]
            array = self.candidates(x, np.arange(len(x)))
            self.lc.llama_sampler_apply(sampler, ctypes.byref(array))
            chosen.append(array.data[array.selected].id)
            sets.append(outcome(self.read(array, len(x))))
        self.lc.llama_sampler_free(sampler)
        return {"chosen": chosen} | {key: [s[key] for s in sets] for key in ("kept", "logits_after")}


def orders(V: int) -> list[np.ndarray]:
    """Other orders of the vocabulary."""
    return [np.arange(V)[::-1].copy(), *(np.random.default_rng([SEED, 99, i]).permutation(V) for i in range(3))]


# Borders that are exact in floating point, so that nudging them proves nothing: (step, option's value, logits).
EXACT = [("epsilon", 0.0625, "equal16"), ("top_n_sigma", 2.0, "pair")]


def settled(c: dict, after: np.ndarray, others: list[np.ndarray]) -> bool:
    """True if all variants keep the same tokens."""
    if (c["step"], next(iter(c["options"].values())), c["logits"]) in EXACT:
        return True
    return all(np.array_equal(np.isfinite(after), np.isfinite(other)) for other in others)


def written(golden: dict) -> str:
    """JSON with one line for each logits array and each case."""
    logits = ",\n".join(f"  {json.dumps(name)}: {json.dumps(x)}" for name, x in golden["logits"].items())
    cases = ",\n".join("  " + json.dumps(c) for c in golden["cases"])
    made_with = json.dumps(golden["made_with"])
    return f'{{\n "made_with": {made_with},\n "logits": {{\n{logits}\n }},\n "cases": [\n{cases}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by", choices=["transformers", "llama.cpp"], help="only this peer")
    parser.add_argument("--model", type=Path, help="GGUF file with a vocabulary, for llama.cpp")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.by != "transformers" and args.model is None:
        parser.error("llama.cpp needs --model")

    logits = {name: [v if np.isfinite(v) else None for v in x.tolist()] for name, x in LOGITS.items()}
    golden = {"made_with": {}, "logits": logits, "cases": []}
    if args.out.exists():
        golden = json.loads(args.out.read_text(encoding="utf-8"))
        if golden["logits"] != logits:
            raise SystemExit("OUT is of other logits")
    makers = {"transformers": Transformers, "llama.cpp": lambda: LlamaCpp(args.model)}
    for by in [args.by] if args.by else list(makers):
        peer = makers[by]()
        cases, seen, left_out = [], set(), 0
        for c in peer.cases():
            key = json.dumps(c)
            if key in seen:
                continue
            seen.add(key)
            result, well_defined = peer.run(c)
            if well_defined:
                cases.append({"by": by} | c | result)
            else:
                left_out += 1
                print(f"left out: {by} {c['step']} {c['options']} on {c['logits']}")
        golden["made_with"][by] = peer.made_with
        golden["cases"] = [c for c in golden["cases"] if c["by"] != by] + cases
        print(f"{by}: {len(cases)} cases, {left_out} left out")
    golden["cases"].sort(key=lambda c: list(makers).index(c["by"]))
    golden["made_with"] = {by: golden["made_with"][by] for by in makers if by in golden["made_with"]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(written(golden), encoding="utf-8")


if __name__ == "__main__":
    main()
