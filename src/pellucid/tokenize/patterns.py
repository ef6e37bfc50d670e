"""Published patterns that split a text before byte-level BPE, and the names that GGUF files give them.

Data only. A name stands for steps; each step is a pattern whose matches become pieces of their own, as do the
gaps between them; the next step works inside the pieces. Sources: the ``pre_tokenizer`` of the models'
``tokenizer.json``, GPT-2's ``encoder.py``, tiktoken's ``openai_public.py``, llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUNCTUATION_RUN = r"[\p{P}\$\+<=>\^~\|]+"

COVERING = frozenset({GPT2, LLAMA3, QWEN2, QWEN35, O200K, TEKKEN})
"""Patterns that match every character of any text, so that there are no gaps to look for."""


@dataclass(frozen=True)
class Splitting:
    """How the files of one ``tokenizer.ggml.pre`` name split text.

    ``ignore_merges``: a pre-token that is a piece as a whole is that piece, whatever the merges say.
    ``add_bos``: whether a text starts with BOS when the file does not say.
    """

    steps: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


def _named(names: str, splitting: Splitting) -> dict[str, Splitting]:
    return dict.fromkeys(names.split(), splitting)


GGUF_PRE: dict[str, Splitting] = {
    **_named("default", Splitting((PUNCTUATION_RUN, GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))),
    **_named("gpt-2 gpt2 phi-2 mpt olmo jais trillion gigachat mellum", Splitting((GPT2,))),
    **_named("smollm starcoder refact command-r codeshell exaone minerva-7b", Splitting((DIGIT, GPT2))),
    **_named("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2", Splitting((LLAMA3,), True, True)),
    **_named("dbrx smaug-bpe", Splitting((LLAMA3,))),
    **_named("qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez", Splitting((QWEN2,))),
    **_named("qwen35", Splitting((QWEN35,))),
    **_named("gpt-4o llama4 kanana2", Splitting((O200K,))),
    **_named("tekken", Splitting((TEKKEN,), ignore_merges=True)),
}
