"""The marks that models put around their reasoning, which comes before the answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts before and after a model's reasoning."""

    open: str
    close: str


KNOWN = (
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<|channel>thought\n", "<channel|>"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>"),
)


def reasoning_marks(template: str) -> ReasoningMarks | None:
    """The marks that a chat template knows."""
    return next((marks for marks in KNOWN if marks.close in template), None)


def is_open(prompt_end: str, marks: ReasoningMarks) -> bool:
    """Whether a prompt that ends so has begun the reasoning."""
    return prompt_end.rstrip().endswith(marks.open.rstrip())


def is_closed(prompt_end: str, marks: ReasoningMarks) -> bool:
    """Whether a prompt that ends so leaves no room for reasoning."""
    return prompt_end.rstrip().endswith(marks.close)
