"""Gaps in a text: prompts to fill in the middle (FIM), and the masks of masked language models."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.tokenize.tokenizer import Tokenizer


def masks_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The positions of the masks among token ids.

    Raises InvalidRequest: there is no mask, or the tokenizer has no mask token.
    """
    mask = tokenizer.mask_id
    if mask is None:
        raise InvalidRequest("the model's tokenizer names no mask token: no token can be filled in")
    places = [place for place, token in enumerate(ids) if token == mask]
    if not places:
        name = tokenizer.vocabulary.tokens[mask]
        raise InvalidRequest(f"the text has no mask: write {name} where a token is to be filled in")
    return places


# Fill in the middle (FIM): prompts from the text before and after a gap, for models trained to fill the gap. Source:
# Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle". The prompt is prefix, suffix,
# middle ("PSM"), each after its control token. Codestral has the suffix first and no token for the middle.


class InfillTokens(Struct, frozen=True):
    """The texts of the control tokens for infilling. If ``middle`` is empty, the prompt begins with the suffix.

    A token of ``ends`` ends the text that fills the gap. ``repository`` is the token before the name of a repository,
    ``file`` the token before the name of a file in the repository.
    """

    prefix: str
    suffix: str
    middle: str = ""
    ends: tuple[str, ...] = ()
    repository: str = ""
    file: str = ""


KNOWN = (
    InfillTokens(  # Qwen2.5-Coder, Granite
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|endoftext|>"), "<|repo_name|>", "<|file_sep|>",
    ),
    InfillTokens(  # StarCoder
        "<fim_prefix>", "<fim_suffix>", "<fim_middle>",
        ("<fim_pad>", "<file_sep>", "<|endoftext|>"), "<repo_name>", "<file_sep>",
    ),
    InfillTokens("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>", "<|endoftext|>")),  # SantaCoder
    InfillTokens("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    InfillTokens("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    InfillTokens("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),  # Code Llama
    InfillTokens("[PREFIX]", "[SUFFIX]"),  # Codestral
)  # fmt: skip


def infill_tokens(tokenizer: Tokenizer) -> InfillTokens | None:
    """A vocabulary's control tokens for infilling; None if it has none."""
    ids = tokenizer.vocabulary.ids
    for known in KNOWN:
        if all(token in ids for token in (known.prefix, known.suffix, known.middle or known.prefix)):
            return known
    return None


def infill_prompt(
    tokenizer: Tokenizer, before: str, after: str, files: Sequence[tuple[str, str]] = ()
) -> tuple[list[int], list[int]]:
    """The ids of a prompt for the text between ``before`` and ``after``, and further stop tokens for this text.

    ``files`` are the names and contents of other files of the same repository. Raises InvalidRequest: the vocabulary
    has no control tokens for infilling.
    """
    known = infill_tokens(tokenizer)
    if known is None:
        raise InvalidRequest(
            "this model cannot fill in: its vocabulary has no control tokens for infilling; leave suffix out"
        )
    ids = tokenizer.vocabulary.ids

    def part(token: str, text: str) -> list[int]:
        return [*([ids[token]] if token in ids else []), *tokenizer.encode(text, add_special=False)]

    prompt = [token for token in tokenizer.encode("") if token not in tokenizer.eos_ids]  # BOS, if the model has it
    if files:
        prompt += part(known.repository, "repository\n")
        for name, text in files:
            prompt += part(known.file, f"{name}\n{text}\n")
        prompt += part(known.file, "current\n")
    first, second = part(known.prefix, before), part(known.suffix, after)
    prompt += [*first, *second, ids[known.middle]] if known.middle else [*second, *first]
    return prompt, [ids[token] for token in known.ends if token in ids]
