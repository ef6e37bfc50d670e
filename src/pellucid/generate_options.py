"""The options of ``LLM.generate`` and related methods, as types for type checkers and editors.

``Options``, the sampler steps, ``SchedulingOptions`` and ``BeamOptions`` define and check the options; a test compares
their fields and types with these. The meaning of each option is in docs/sampling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from pellucid.sample.step import SamplerStep

if TYPE_CHECKING:
    from pellucid.trace.edits import Edit
    from pellucid.trace.linear_probe import LinearProbe


class StepOptions(TypedDict, total=False):
    """The options of the sampler steps (``sample/steps/``)."""

    allowed: Sequence[Any]
    banned: Sequence[Any]
    choices: Any
    dry_allowed_length: int
    dry_base: float
    dry_multiplier: float
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    dynatemp_exponent: float
    dynatemp_range: float
    epsilon_cutoff: float
    eta_cutoff: float
    forced_bos_token_id: int
    forced_eos_token_id: int
    frequency_penalty: float
    grammar: Any
    json_schema: Any
    logit_bias: Mapping[int, float] | Mapping[str, float] | Mapping[int | str, float]
    min_new_tokens: int
    min_p: float
    mirostat: int
    mirostat_eta: float
    mirostat_tau: float
    no_repeat_ngram_size: int
    presence_penalty: float
    regex: Any
    repeat_last_n: int
    repetition_penalty: float
    target_language: str
    temperature: float
    top_h: float
    top_k: int
    top_n_sigma: float
    top_p: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float


class TextOptions(StepOptions, total=False):
    """The options of a text: the options of the steps, and the fields of ``Options``."""

    draft: bool
    ignore_eos: bool
    keep_special: bool | Sequence[int]
    logprobs: int | None
    logprobs_of: str
    max_new_tokens: int | None
    max_time: float | None
    prompt_logprobs: int | None
    prompt_lookup: bool
    receipt: bool
    samplers: Sequence[str | SamplerStep] | None
    seed: int | None
    stop: Sequence[str] | str | None
    stop_token_ids: Sequence[int] | None
    until: Callable[[str], bool] | None
    watch: bool


class GenerationOptions(TextOptions, total=False):
    """The options of ``LLM.generate``: of a text and its scheduling (``SchedulingOptions``), edits, vectors, probes."""

    deadline: float | None
    edits: Sequence[Edit] | None
    priority: int
    probes: Sequence[LinearProbe | str] | Mapping[str, Mapping[str, float]] | None
    steer: Mapping[str, float] | None


class BeamSearchOptions(GenerationOptions, total=False):
    """The options of ``LLM.beam_search``: the options of ``LLM.generate``, and the fields of ``BeamOptions``."""

    diversity_penalty: float
    do_sample: bool
    early_stopping: bool | str
    length_penalty: float
    num_beam_groups: int
    num_beams: int
    num_return_sequences: int
