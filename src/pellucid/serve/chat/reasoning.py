"""The marks of reasoning: the texts before and after a model's reasoning, such as <think> and </think>.

The reasoning comes before the answer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningMarks:
    """Texts before and after a model's reasoning."""

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
    """The marks that a chat template contains; None if it contains no known marks."""
    return next((marks for marks in KNOWN if marks.close in template), None)


def is_open(prompt_end: str, marks: ReasoningMarks) -> bool:
    """True if the prompt has begun the reasoning, because the prompt ends with the opening mark."""
    return prompt_end.rstrip().endswith(marks.open.rstrip())


def is_closed(prompt_end: str, marks: ReasoningMarks) -> bool:
    """True if the answer has no reasoning, because the prompt ends with the closing mark."""
    return prompt_end.rstrip().endswith(marks.close)
