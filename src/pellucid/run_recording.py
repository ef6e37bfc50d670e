"""Recorded runs of a loaded model: recording, and continuing a run from any step (docs/tracing.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.output import Generation
from pellucid.engine.request import run_together
from pellucid.errors import InvalidRequest, brief
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import Plan
from pellucid.sample.options import Options
from pellucid.sample.recommended import with_recommended
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.decode import several
from pellucid.trace.edits import Edit
from pellucid.trace.recorded_run import RecordedRun, identity, parts_of, plain_options, shape_of
from pellucid.trace.trace import Trace
from pellucid.trace.traced_model import OpenedModel, token_of
from pellucid.tracing import Tracing, warn_unused
from pellucid.util.checks import whole


class RecordedModel(OpenedModel, Protocol):
    """A loaded model whose runs can be recorded. ``llm.LLM`` implements it."""

    inputs: Inputs
    recommended: dict[str, Any]
    tracing: Tracing

    @property
    def plan(self) -> Plan: ...
    def request(
        self, prompt: PromptInput, n: int = 1, /, *, resumed: Sequence[int] = (), **options: Any
    ) -> LocalRequest: ...


def record(
    model: RecordedModel,
    prompt: PromptInput,
    points: Sequence[str],
    edits: Sequence[Edit],
    budget: int,
    options: dict[str, Any],
) -> RecordedRun:
    """As ``LLM.record``."""
    kept = plain_options(with_recommended(options, model.recommended))
    with model.tracing.trace(*points, edits=edits, budget=budget, on=None) as trace:
        request = model.request(prompt, **options)
        run_together([request])
    warn_unused(request)
    result = request.result()
    return _recorded(model, request.prompt, result.ids, result.text, result, kept, trace)


def resume(
    model: RecordedModel,
    run: RecordedRun,
    step: int,
    token: int | str | None,
    points: Sequence[str],
    edits: Sequence[Edit],
    budget: int,
    changes: dict[str, Any],
) -> RecordedRun:
    """Continue a recorded run after its first ``step`` tokens. ``token`` replaces the next token.

    Earlier tokens come from the prefix cache if they are still cached. The random numbers are the same as in the run,
    so without changes the continuation is the same, bit for bit. ``changes`` replace options of the run.

    Raises:
        InvalidRequest: the run belongs to another model, ``step`` is out of range, or ``token`` is not a token.
        NothingLeft: the run's constraint does not allow the token.
    """
    _check_run(model.spec, run)
    if run.edits and not edits and not model.tracing.has_edits:
        raise InvalidRequest(
            f"edits: the run used {brief(run.edits[0])}, but its file cannot store edits: pass the edits again"
        )
    step = whole("step", step, 0, len(run.ids), "the run has no more tokens")
    resumed = [*run.ids[:step], *([] if token is None else [token_of(model, token)])]
    seed = {} if run.seed is None else {"seed": run.seed}
    options = {**_with_numbers(run.options), **seed, **changes}
    limit = Options.of(**with_recommended(options, model.recommended)).max_new_tokens
    if limit is not None and "max_new_tokens" not in changes:
        if limit <= len(resumed):
            raise InvalidRequest(
                f"step={step}: the run ends at this step: choose an earlier step, or pass max_new_tokens"
            )
        options["max_new_tokens"] = limit - len(resumed)
    given = run.source or run.prompt
    with model.tracing.trace(*points, edits=edits, budget=budget, on=None) as trace:
        request = model.request(given, resumed=resumed, **options)
        run_together([request])
    warn_unused(request)
    result = request.result()
    if options.get("max_new_tokens") is not None:
        # Record the limit of the whole answer, as in a run that was not resumed.
        options["max_new_tokens"] += len(resumed)
    text = _text_of(model.tokenizer, request.options, resumed) + result.text
    ids = [*resumed, *result.ids]
    return _recorded(model, given, ids, text, result, plain_options(options), trace)


def _recorded(
    model: RecordedModel,
    given: list[int],
    ids: list[int],
    text: str,
    result: Generation,
    options: dict[str, Any],
    trace: Trace,
) -> RecordedRun:
    """The recorded run of a request with the prompt ``given``: the source in an encoder-decoder."""
    tokenizer = model.tokenizer
    prompt, source = (list(model.spec.start), given) if model.spec.encoder else (given, [])
    return RecordedRun(
        model=identity(model.spec),
        prompt=prompt,
        source=source,
        source_pieces=[tokenizer.piece(token) for token in source],
        ids=ids,
        pieces=[tokenizer.piece(token) for token in [*prompt, *ids]],
        characters=[list(one) for one in several(tokenizer.characters([*prompt, *ids]))],
        text=text,
        finish_reason=result.finish_reason,
        seed=result.seed,
        options=options,
        chain=result.as_dict()["chain"],
        edits=[repr(edit) for edit in trace.edits],
        shape=shape_of(model.spec, model.plan, model.inputs.vocabulary),
        parts=parts_of(trace.selected),
        arrays={name: trace.sequences[0][name] for name in trace},
    )


def _with_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Restore options from a file: JSON stores the token ids of ``logit_bias`` as strings."""
    bias = options.get("logit_bias")
    if not isinstance(bias, Mapping):
        return dict(options)
    return {**options, "logit_bias": {int(k) if k.isdecimal() and len(k) < 19 else k: v for k, v in bias.items()}}


def _text_of(tokenizer: Tokenizer, options: Options, ids: Sequence[int]) -> str:
    """The text of an answer's first tokens. The end of this text is left out if it may begin a stop string."""
    stream, stop = tokenizer.stream(skip=options.skipped(tokenizer)), options.stop_criteria()
    return "".join(stop.push(stream.push(token), last=False)[0] for token in ids)


def _check_run(spec: ModelSpec, run: RecordedRun) -> None:
    """Refuse a run of another model."""
    ours = identity(spec)
    if run.model != ours:
        raise InvalidRequest(
            f"the run belongs to {brief(run.model)}, but this model is {brief(ours)}: load the run's model"
        )
