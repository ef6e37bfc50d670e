"""Published patterns that split a text before byte-level BPE, and their names in GGUF files.

This file has only data. A name stands for a list of steps. Each step is a pattern that splits a text into its matches
and the gaps between them. The next step splits these parts. Sources: the ``pre_tokenizer`` of the models'
``tokenizer.json``, GPT-2's ``encoder.py``, tiktoken's ``openai_public.py``, llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

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

_KIMI_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
KIMI = (
    rf"[\p{{Han}}]+|{_KIMI_CASE}|{_KIMI_CASE.replace(']]*[', ']]+[').replace(']]+(', ']]*(')}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_HAN = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽ"
    "ᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-"
    "Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-"
    "ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""The letters of alphabets with two cases, as DeepSeek's first tokenizer lists them."""
_CJK = "[一-龥\u0800-一가-\ud7ff]+"
DEEPSEEK = ("[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+")
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
STARCODER = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)

LINEAR = frozenset({GPT2, LLAMA3, QWEN2, QWEN35, O200K, TEKKEN, KIMI, DEEPSEEK3, STARCODER, BLOOM, CL100K})
"""Patterns that a backtracking engine runs in linear time on every text."""


class Splitting(Struct, frozen=True):
    """The pre-tokenizer of files with a given ``tokenizer.ggml.pre``.

    ``ignore_merges``: a pre-token that equals a piece becomes this piece without merging. ``add_bos``: a text starts
    with BOS unless the file says otherwise. ``add_sep``: a separator is between two texts unless the file says
    otherwise. ``mask_lstrip``: the mask token includes the white space before it.
    """

    steps: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False
    mask_lstrip: bool = False


_SPLITTINGS = {
    "default": Splitting((PUNCTUATION_RUN, GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2 gpt2 phi-2 mpt olmo jais trillion gigachat mellum a.x-4.0 exaone4 granite-docling": Splitting((GPT2,)),
    "jina-es jina-de jina-v2-es jina-v2-de modern-bert": Splitting((GPT2,), mask_lstrip=True),
    "roberta-bpe jina-v1-en jina-v2-code": Splitting((GPT2,), add_sep=True, mask_lstrip=True),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Splitting((DIGIT, GPT2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0 jina-v5-nano": Splitting((LLAMA3,), True, True),
    "chatglm-bpe": Splitting((LLAMA3,)),
    "glm4 glm5": Splitting((LLAMA3,), ignore_merges=True),
    "deepseek-llm": Splitting(DEEPSEEK),
    "deepseek-coder": Splitting(DEEPSEEK_CODER),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Splitting((r"\p{N}{1,3}", DEEPSEEK_HAN, DEEPSEEK3)),
    "falcon": Splitting(FALCON),
    "bloom poro-chat gpt3-finnish": Splitting((BLOOM,)),
    "viking": Splitting((BLOOM, DIGIT)),
    "seed-coder": Splitting((SEED,)),
    "dbrx smaug-bpe": Splitting((LLAMA3,)),
    "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 solar-open grok-2": Splitting((QWEN2,)),
    "qwen35": Splitting((QWEN35,)),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Splitting((O200K,)),
    "tekken": Splitting((TEKKEN,), ignore_merges=True),
}
GGUF_PRE = {name: splitting for names, splitting in _SPLITTINGS.items() for name in names.split()}
"""The pre-tokenizers by the values of ``tokenizer.ggml.pre``."""


class TiktokenRanks(Struct, frozen=True):
    """The data that a tiktoken file lacks: its pattern, and its special tokens with their ids.

    ``reserved`` lists the tokens whose ids follow the vocabulary, in order. ``digest`` is the SHA-256 of the published
    file; ``stated`` are the ``model_type`` and ``tokenizer_class`` of folders with these ranks.
    """

    pattern: str
    named: Mapping[str, int] = field(default_factory=dict)
    reserved: tuple[str, ...] = ()
    digest: str = ""
    stated: tuple[str, ...] = ()

    def special(self, size: int) -> dict[str, int]:
        """The special tokens of a vocabulary of ``size`` pieces, with their ids."""
        return {**self.named, **{name: size + at for at, name in enumerate(self.reserved)}}


_END = "<|endoftext|>"
_FILL = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
_HARMONY = {
    "<|startoftext|>": 199998, _END: 199999, "<|return|>": 200002, "<|constrain|>": 200003, "<|channel|>": 200005,
    "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
    **{f"<|reserved_{index}|>": index for index in (200000, 200001, 200004, 200009, 200010, 200011)},
    **{f"<|reserved_{index}|>": index for index in range(200013, 201088) if index != 200018},
    "<|endofprompt|>": 200018,
}  # fmt: skip
_LLAMA3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
    *("<|eot_id|>", "<|python_tag|>", "<|image|>"),
    *(f"<|reserved_special_token_{at}|>" for at in range(2, 246)),
)
_POST_TRAIN, _VISION, _REASONING = (
    f"<|{name}_reserved_special_token_{{}}|>" for name in ("text_post_train", "vision", "reasoning")
)
_LLAMA4 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
    *map(_POST_TRAIN.format, range(6)),
    *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
    *map(_POST_TRAIN.format, range(8, 69)),
    *("<|image_start|>", "<|image_end|>", *map(_VISION.format, range(2))),
    *("<|tile_x_separator|>", "<|tile_y_separator|>", *map(_VISION.format, range(2, 6))),
    *("<|image|>", _VISION.format(6), "<|patch|>", *map(_VISION.format, range(7, 1048))),
    *map(_REASONING.format, range(8)),
    *("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
    *(f"<|reserved_special_token_{at}|>" for at in range(904)),
)
_QWEN = (_END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{at}|>" for at in range(205)))

_R50K = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_O200K = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

TIKTOKEN: dict[str, TiktokenRanks] = {
    "r50k_base": TiktokenRanks(GPT2, {_END: 50256}, digest=_R50K),
    "gpt2": TiktokenRanks(GPT2, {_END: 50256}, digest=_R50K, stated=("gpt2", "GPT2Tokenizer")),
    "p50k_base": TiktokenRanks(
        GPT2, {_END: 50256}, digest="94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
    ),
    "cl100k_base": TiktokenRanks(
        LLAMA3,
        {_END: 100257, **_FILL, "<|endofprompt|>": 100276},
        digest="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": TiktokenRanks(O200K, {_END: 199999, "<|endofprompt|>": 200018}, digest=_O200K),
    "o200k_harmony": TiktokenRanks(O200K, _HARMONY, digest=_O200K, stated=("gpt_oss",)),
    "llama3": TiktokenRanks(
        LLAMA3,
        reserved=_LLAMA3,
        digest="82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        stated=("llama", "mllama"),
    ),
    "llama4": TiktokenRanks(
        O200K,
        reserved=_LLAMA4,
        digest="d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",
        stated=("llama4", "llama4_text"),
    ),
    "qwen": TiktokenRanks(
        QWEN2,
        reserved=_QWEN,
        digest="b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
        stated=("qwen", "QWenTokenizer"),
    ),
}
"""Published ranks: OpenAI (tiktoken, ``openai_public.py``), Llama 3 and 4 (llama-models, ``Tokenizer``), Qwen 1."""
