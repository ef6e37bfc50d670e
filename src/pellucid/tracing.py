"""The tracing methods of a loaded model: traces, edits, recorded runs (docs/tracing.md)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.job import USUAL
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Generation
from pellucid.engine.probe import Watching
from pellucid.engine.reading import ReadingTask
from pellucid.engine.request import RequestGroup
from pellucid.engine.text_group import TextGroup, run_together
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import Plan
from pellucid.plan.points import Point
from pellucid.sample.options import Options
from pellucid.sample.recommended import with_recommended
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.characters import several
from pellucid.trace.edits import EditOf, listed
from pellucid.trace.frames import LIMIT, FrameReader, TraceFrame, TraceStream
from pellucid.trace.output_points import all_points
from pellucid.trace.recorded_run import RecordedRun, identity, parts_of, plain_options, shape_of
from pellucid.trace.trace import BUDGET, Trace
from pellucid.trace.traced_model import token_of
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import Checkpoint

ROWS = 64
"""Number of vectors that are projected between two steps."""
DIVIDED = "the model runs on several machines, whose values cannot be watched from here"


class TracingModel:
    """The base class of ``LLM`` for tracing. ``LLM`` sets the attributes."""

    checkpoint: Checkpoint
    engine: Engine
    inputs: Inputs
    runner: ModelRunner
    tokenizer: Tokenizer
    recommended: dict[str, Any]

    def __init__(self) -> None:
        self.admission = USUAL
        self._points = cache(partial(all_points, self.runner.plan))
        self._traced: ContextVar[Trace | None] = ContextVar("traced", default=None)

    @property
    def spec(self) -> ModelSpec:
        """The architecture: family, dimensions, blocks."""
        return self.runner.spec

    @property
    def plan(self) -> Plan:
        """The operations that each step of the model runs, in order."""
        return self.runner.plan

    def project(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits (n, V) of vectors (n, D) in place of the residual stream after the last block.

        The projection runs between the steps of requests.

        Raises: as ``ModelRunner.project``.
        """
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        parts = [vectors[first : first + ROWS] for first in range(0, len(vectors), ROWS)] or [vectors]
        turns = (self.runner.project(part) for part in parts)
        found = list(self.engine.run(ReadingTask(turns), self.admission, ahead=1))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def generate_edited(
        self, prompt: PromptInput, edits: Sequence[Sequence[EditOf]], **options: Any
    ) -> list[Generation]:
        """Run a prompt once for each list of ``edits``, all together. Takes the options of ``generate``.

        By default each run generates one token, greedily.
        """
        parsed = self._options({"max_new_tokens": 1, "temperature": 0, "ignore_eos": True, **options})
        groups = [self._watched_group(prompt, parsed, self._watching({"edits": list(own)})) for own in edits]
        run_together(groups)
        warn_unused(*groups)
        return [group.results()[0] for group in groups]

    def _options(self, asked: Mapping[str, Any]) -> Options:
        """The options of a generation: the given options, completed by the file's recommendations."""
        return Options.of(**with_recommended(asked, self.recommended))

    def _watched_group(
        self,
        prompt: PromptInput,
        options: Options,
        watching: Watching | None,
        begun: Sequence[tuple[int, float]] = (),
    ) -> RequestGroup:
        chains = [options.chain()]
        return RequestGroup(
            self.engine, self.inputs, prompt, options, chains, self.admission, watching, begun
        )

    @property
    def unwatched(self) -> str:
        """The reason why values of the model cannot be traced and edited; "" if they can."""
        return DIVIDED if self.runner.stage else ""

    @property
    def points(self) -> dict[str, Point]:
        """The values of a run that can be traced and edited, by name, in the order of the pipeline.

        Raises:
            InvalidRequest: the blocks of the model are divided over several machines.
        """
        if self.unwatched:
            raise InvalidRequest(self.unwatched)
        return self._points()

    def watch(
        self,
        group: TextGroup,
        names: Sequence[str],
        limit: int = LIMIT,
        notify: Callable[[], object] = lambda: None,
    ) -> TraceStream:
        """Stream the values of points of a running request, from its next step until the stream is closed.

        Arguments and errors are as in ``TraceStream``.
        """
        assert isinstance(group, RequestGroup)
        refuse_watched(group)
        stream = TraceStream(self.points, names, limit, notify)
        group.attach(stream.probes(len(group.builders)))
        stream.ended = partial(group.attach, [])
        return stream

    @contextmanager
    def trace(
        self,
        *points: str,
        edits: Sequence[EditOf] = (),
        budget: int = BUDGET,
        on: Callable[[TraceFrame], object] | None = None,
    ) -> Iterator[Trace]:
        """Record values of all requests inside a ``with`` statement, in the same thread or asyncio task.

            with llm.trace("blocks.*.residual", "blocks.5.attention.pattern[heads=0,3]") as t:
                llm.generate("The capital of France is", max_new_tokens=8)
            t["blocks.5.attention.pattern"]  # (B, H, T, T')

        Args:
            points: names of points, with ``*`` for a part of a name, or selected parts of points
                (``trace/selection.py``).
            edits: changes of values (``trace/edits.py``). For edits of a single request use
                ``generate(..., edits=[...])``.
            budget: maximum size of the trace in bytes.
            on: a function that is called with each ``TraceFrame`` soon after its step, in its own thread. Frames are
                dropped if the function is too slow (``t.stream.dropped``). Its errors are raised at the end.

        If traces are nested, only the inner trace records, and the edits of both apply.

        Raises:
            InvalidRequest: a name matches no point, or an edit does not fit its point. A request inside raises it if
                its prompt does not fit into the budget.
        """
        outer = self._traced.get()
        own = [*(outer.edits if outer is not None else ()), *listed(edits)]
        if on is not None and not callable(on):
            raise InvalidRequest(f"on={brief(on)}: must be a function of a frame")
        made = Trace(self.points, points, own, budget, self.tokenizer.piece)
        reader = None
        if on is not None:
            made.stream = TraceStream(self.points, points)
            reader = FrameReader(made.stream, on)
            made.stream.notify = reader.notify
        before = self._traced.set(made)
        try:
            yield made
        except BaseException:
            if reader is not None:
                reader.stop()
            raise
        finally:
            with suppress(ValueError):  # the trace ends in another task, where the variable is not set
                self._traced.reset(before)
        if reader is not None:
            reader.close()

    def record(
        self,
        prompt: PromptInput,
        *points: str,
        edits: Sequence[EditOf] = (),
        budget: int = BUDGET,
        **options: Any,
    ) -> RecordedRun:
        """Generate, and record the run. The recorded run can be saved, opened without the model, and resumed.

        Takes the points and edits of ``trace``, and the options of ``generate`` that a file can hold.

        Raises: as ``generate`` and ``trace``.
        """
        kept = plain_options(with_recommended(options, self.recommended))
        with self.trace(*points, edits=edits, budget=budget) as trace:
            group = self._watched_group(prompt, self._options(options), trace.watching())
            run_together([group])
        warn_unused(group)
        made, ids = group.results()[0], self.inputs.prompt(prompt)
        return self._recorded(ids, made.ids, made.text, made, kept, trace)

    def resume(
        self,
        run: RecordedRun,
        step: int,
        *points: str,
        token: int | str | None = None,
        edits: Sequence[EditOf] = (),
        budget: int = BUDGET,
        **changes: Any,
    ) -> RecordedRun:
        """Continue a recorded run after its first ``step`` tokens. ``token`` replaces the next token.

        The tokens before come from the prefix cache if it still holds them. The random numbers are the same as in the
        run: without a change the rest is the same, bit for bit. ``changes`` are options that replace the run's options.

        Raises:
            InvalidRequest: the run belongs to another model, ``step`` is out of range, or ``token`` is not a token.
            NothingLeft: the run's constraint does not allow the token.
        """
        _check_run(self.spec, run)
        outer = self._traced.get()
        if run.edits and not edits and not (outer is not None and outer.edits):
            raise InvalidRequest(
                f"edits: the run was made with {brief(run.edits[0])}, which a file cannot hold: give them again"
            )
        step = whole("step", step, 0, len(run.ids), "the run has no more tokens")
        begun = [*run.ids[:step], *([] if token is None else [token_of(self, token)])]
        options = {
            **_with_numbers(run.options),
            **({} if run.seed is None else {"seed": run.seed}),
            **changes,
        }
        most = self._options(options).max_new_tokens
        if most is not None and "max_new_tokens" not in changes:
            if most <= len(begun):
                raise InvalidRequest(
                    f"step={step}: the run ends there: take an earlier one, or give max_new_tokens"
                )
            options["max_new_tokens"] = most - len(begun)
        with self.trace(*points, edits=edits, budget=budget) as trace:
            before = [(token, 1.0) for token in begun]
            group = self._watched_group(run.prompt, self._options(options), trace.watching(), before)
            run_together([group])
        warn_unused(group)
        made = group.results()[0]
        if options.get("max_new_tokens") is not None:
            options["max_new_tokens"] += len(begun)  # of the whole answer, as if the run was not resumed
        kept, text = plain_options(options), _text_of(self.tokenizer, group.options, begun) + made.text
        return self._recorded(run.prompt, [*begun, *made.ids], text, made, kept, trace)

    def _recorded(
        self,
        prompt: list[int],
        ids: list[int],
        text: str,
        made: Generation,
        options: dict[str, Any],
        trace: Trace,
    ) -> RecordedRun:
        return RecordedRun(
            model=identity(self.spec),
            prompt=prompt,
            ids=ids,
            pieces=[self.tokenizer.piece(token) for token in [*prompt, *ids]],
            characters=[list(one) for one in several(self.tokenizer.characters([*prompt, *ids]))],
            text=text,
            finish_reason=made.finish_reason,
            seed=made.seed,
            options=options,
            chain=made.as_dict()["chain"],
            edits=[repr(edit) for edit in trace.edits],
            shape=shape_of(self.spec, self.plan, self.inputs.vocabulary),
            parts=parts_of(trace.selected),
            arrays={name: trace.sequences[0][name] for name in trace},
        )

    def _refuse_frames(self, why: str) -> None:
        """Refuse a trace with ``on`` for work that cannot be observed while it runs."""
        trace = self._traced.get()
        if trace is not None and trace.stream is not None:
            raise InvalidRequest(f"on: {why}: leave it out, and read the trace afterwards")

    def _watching(self, options: dict[str, Any]) -> Watching | None:
        """The recordings and edits of a request. Removes the request's own edits from ``options``."""
        trace, edits = self._traced.get(), options.pop("edits", None)
        own = [] if edits is None else listed(edits)
        if trace is None:
            return Trace(self.points, ()).watching(own) if own else None
        return trace.watching(own)


def warn_unused(*groups: TextGroup) -> None:
    """Warn of edits that ended requests did not use."""
    warn_all([said for group in groups for said in group.unused()], 4)


def warn_all(notices: Sequence[str], level: int = 3) -> None:
    """Issue warnings about unused edits."""
    for said in notices:
        warnings.warn(said, stacklevel=level)


def refuse_watched(group: TextGroup) -> None:
    """Refuse to watch a request that has its own edits or trace. Raises InvalidRequest."""
    if group.watching is not None:
        raise InvalidRequest(
            "the request has edits or a trace of its own, and its values cannot be watched: watch another one"
        )


def _with_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Restore options from a file: JSON stores the token ids of ``logit_bias`` as strings."""
    bias = options.get("logit_bias")
    if not isinstance(bias, Mapping):
        return dict(options)
    return {
        **options,
        "logit_bias": {int(k) if k.isdecimal() and len(k) < 19 else k: v for k, v in bias.items()},
    }


def _text_of(tokenizer: Tokenizer, options: Options, ids: Sequence[int]) -> str:
    """The text of an answer's first tokens, without an ending that may begin a stop string."""
    stream, stop = tokenizer.stream(skip=options.skipped(tokenizer)), options.stop_criteria()
    return "".join(stop.push(stream.push(token), last=False)[0] for token in ids)


def _check_run(spec: ModelSpec, run: RecordedRun) -> None:
    """Refuse a run of another model."""
    ours = identity(spec)
    if run.model != ours:
        raise InvalidRequest(
            f"the run is of {brief(run.model)}, and this model is {brief(ours)}: load that one"
        )
