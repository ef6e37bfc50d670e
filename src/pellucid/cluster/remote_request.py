"""A generation request that runs on a replica. If the replica is lost, another replica continues the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

from pellucid.cluster import wire
from pellucid.cluster.fleet import Fleet, RemoteTask
from pellucid.cluster.remote_trace import RemoteTraceStream
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import PromptOutput, Request, RequestOptions, SequenceOutput
from pellucid.errors import KernelError, PellucidError
from pellucid.plan.points import Point
from pellucid.sample.chain import Chain
from pellucid.sample.options import SEEDS
from pellucid.tracing import refuse_late


class RemoteRequest(Request):
    """A request for ``n`` sequences of a prompt, run by replicas.

    Every replica generates the same tokens for the same request. To continue a sequence, a replica therefore needs only
    the tokens so far and, for Mirostat, the probabilities of these tokens.
    """

    @property
    def resumable(self) -> bool:  # type: ignore[override]
        """True for a request with one sequence. With more sequences, the order of the tokens differs in each run."""
        return len(self.outputs) == 1

    def __init__(
        self, fleet: Fleet, inputs: Inputs, prompt: PromptInput, options: RequestOptions, n: int, resumed: Sequence[int]
    ) -> None:
        super().__init__(inputs, prompt, options, resumed)
        chain = self.options.chain()
        # Refuse invalid options here, before the response begins. A replica would refuse them later.
        self._sampler(chain).end()
        self._sent_options, self._resumed = sent_options(options, chain), resumed
        chains = chain.with_seeds(n)
        self.outputs = [SequenceOutput(chain, self.options) for chain in chains]
        self._begin_recorders(1)  # checks edits; the recorders of the replica record and edit
        self._fleet = fleet
        self._edits = wire.edits_fields(options.edits)
        self._probes = [wire.probe_fields(probe) for probe in options.probes]
        self._task = _GenerateTask(self)
        self._facts = PromptOutput()
        self._probabilities: list[list[float]] = [[] for _ in chains]
        self._speculation = [[0, 0] for _ in chains]
        self._queue: asyncio.Queue[TokenOutput | PellucidError | None] = asyncio.Queue()
        self._begun = 0.0
        self._ended = False
        self._stream: RemoteTraceStream | None = None

    @property
    def prompt_output(self) -> PromptOutput:
        """Facts about the prompt so far."""
        return self._facts

    @property
    def speculation(self) -> list[tuple[int, int]]:
        """Numbers of proposed and of accepted draft tokens, for each sequence."""
        return [(proposed, accepted) for proposed, accepted in self._speculation]

    def set_name(self, name: str, resumes: bool) -> None:
        """Name the request. With ``resumes``, a replica may already run a request of this name.

        The output then begins with all earlier output of the replica's request.

        If the options have no seed, the name determines the seed.
        """
        self._task.name, self._task.resumes = name, resumes
        if self.options.seed is None and not self.outputs[0].chain.greedy:
            seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") % SEEDS
            self._sent_options["seed"] = seed
            chains = replace(self.outputs[0].chain, seed=seed).with_seeds(len(self.outputs))
            for output, chain in zip(self.outputs, chains):
                output.chain = chain

    def start(self) -> None:
        """Start the request."""
        self._begun = time.perf_counter()
        self._fleet.call(partial(self._fleet.submit, self._task))

    def stream(self) -> AsyncGenerator[TokenOutput, None]:
        """Start the request. Return an iterator over its tokens."""
        self.start()
        return self._streamed()

    async def _streamed(self) -> AsyncGenerator[TokenOutput, None]:
        try:
            while True:
                item = await self._queue.get()
                if isinstance(item, PellucidError):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            self.close()

    async def finished(self) -> None:
        """Wait until the request has ended. If this coroutine is cancelled, the request is cancelled too."""
        async for _ in self._streamed():
            pass

    def wait(self) -> None:
        """Wait until the request has ended. Do not call this in the thread of the fleet's event loop."""
        asyncio.run_coroutine_threadsafe(self._run_to_end(), self._fleet.loop).result()

    async def _run_to_end(self) -> None:
        if not self._begun:
            self.start()
        await self.finished()

    def stream_values(
        self,
        points: Mapping[str, Point],
        names: Sequence[str],
        limit: int,
        notify: Callable[[], object] = lambda: None,
        norms: Sequence[str] = (),
        own: bool = False,
    ) -> RemoteTraceStream:
        """Stream the values at the points ``names``, from the next step on until the stream is closed.

        The stream reduces the points ``norms`` to the norms of their rows. ``own``: the stream belongs to the client of
        the request, which has not started (``RemoteTraceStream``).

        Raises: as ``TraceStream`` and ``refuse_late``.
        """
        stream = RemoteTraceStream(points, names, limit, notify, self._tell, norms, own)
        refuse_late(self, stream)
        stream.ended = partial(self._unwatch, stream)
        self._stream = stream
        self.tell_watch()
        return stream

    def _tell(self, kind: str, *fields: Any) -> None:
        self._fleet.call(partial(self._fleet.tell, self._task, kind, *fields))

    def _unwatch(self, stream: RemoteTraceStream) -> None:
        self._tell("unwatch", stream.number)
        if self._stream is stream:
            self._stream = None

    def tell_watch(self) -> None:
        """If a stream watches the request, tell the current replica about the stream."""
        if watch := self._watch_fields():
            self._tell("watch", *watch)

    def _watch_fields(self) -> list[Any]:
        """Return the fields of the ``watch`` message. The list is empty if no stream watches the request."""
        if self._stream is None:
            return []
        return self._stream.begin(len(self.decoder_ids), [len(output.ids) for output in self.outputs])

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        if not self._ended and self._begun:
            self._ended = True
            self._fleet.call(partial(self._fleet.cancel, self._task))

    def remaining_body(self) -> dict[str, Any]:
        """Return the body of the ``run`` message: the unfinished sequences, each with its tokens so far."""
        passed = time.perf_counter() - self._begun
        options, deadline = dict(self._sent_options), self.scheduling.deadline
        if options.get("max_time") is not None:
            options["max_time"] = max(options["max_time"] - passed, 1e-3)
        if any(output.ids for output in self.outputs):
            # The log-probabilities of the prompt have arrived with the first token.
            options["prompt_logprobs"] = None
        if options.get("max_new_tokens") is not None:
            options["max_new_tokens"] += len(self._resumed)
        before = [(token, 1.0) for token in self._resumed]
        numbers = [number for number, output in enumerate(self.outputs) if not output.ended]
        return {
            "prompt": self.prompt,
            "read": len(self.decoder_ids),
            "options": options,
            "edits": self._edits,
            "probes": self._probes,
            "watch": self._watch_fields(),
            "numbers": numbers,
            "begun": {
                number: [*before, *zip(self.outputs[number].ids, self._probabilities[number])] for number in numbers
            },
            "priority": self.scheduling.priority,
            "client": self.scheduling.client,
            "deadline": None if deadline is None else max(deadline - passed, 1e-3),
        }

    def take(self, kind: str, fields: Sequence[Any]) -> bool:
        """Handle a message of the replica. Return True if the request has ended."""
        if kind == "token":
            number, index, *values = fields
            if not 0 <= number < len(self.outputs):
                raise wire.WireError(f"a token of sequence {number}: the request has {len(self.outputs)} sequences")
            output = self.outputs[number]
            known = len(self._resumed) + len(output.ids)
            if index != known or output.ended:
                raise wire.WireError(f"token {index} of a sequence with {known} tokens so far")
            token = wire.token_of(values, number)
            output.add(token, time.perf_counter() - self._begun)
            self._probabilities[number].append(token.probability)
            self._queue.put_nowait(token)
        elif kind == "facts":
            facts = wire.facts_of(fields)
            if self.receipts is not None and facts.identity is not None:
                try:
                    self.receipts.identify(facts.identity)
                except KernelError as error:
                    self.fail(error)
                    return True
            # Keep the facts from the first replica if another replica continues the request.
            if not any(output.ids for output in self.outputs):
                self._facts = facts
        elif kind == "values":
            if self._stream is not None:
                self._stream.take(*fields)
        elif kind == "end":
            for number, pair in fields[0].items():
                self._speculation[number] = [a + b for a, b in zip(self._speculation[number], pair)]
            self._ended = True
            self._queue.put_nowait(None)
            return True
        return False

    def fail(self, error: PellucidError) -> None:
        """End the request with an error."""
        self._ended = True
        self._queue.put_nowait(error)


def sent_options(options: RequestOptions, chain: Chain) -> dict[str, Any]:
    """The options for replicas: the given options, with the seed of this process.

    Raises:
        InvalidRequest: a value is a function or another object that cannot be sent.
    """
    return wire.plain_options(options.given if chain.greedy else {**options.given, "seed": chain.seed})


class _GenerateTask(RemoteTask):
    """The task of a ``RemoteRequest``: generation of its sequences."""

    kind = "generate"

    def __init__(self, request: RemoteRequest) -> None:
        super().__init__(request.prompt)
        self._request = request

    @property
    def progress(self) -> int:
        return sum(len(output.ids) for output in self._request.outputs)

    @property
    def complete(self) -> bool:
        return all(output.ended for output in self._request.outputs)

    def resumed(self) -> None:
        self._request.tell_watch()

    def body(self) -> dict[str, Any]:
        self.began = False
        return self._request.remaining_body()

    def take(self, kind: str, fields: Sequence[Any]) -> bool:
        self.began = True
        return self._request.take(kind, fields)

    def fail(self, error: PellucidError) -> None:
        self._request.fail(error)


class RemoteCall(RemoteTask):
    """A call with one result, such as a beam search. If the replica is lost, another replica repeats the call."""

    def __init__(self, kind: str, prompt: Sequence[int], body: dict[str, Any]) -> None:
        super().__init__(prompt)
        self.kind, self._body, self._pieces = kind, body, bytearray()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def body(self) -> dict[str, Any]:
        self._pieces.clear()
        return self._body

    def take(self, kind: str, fields: Sequence[Any]) -> bool:
        if kind == "piece":
            self._pieces += fields[0]
            if len(self._pieces) > wire.MAX_PIECES:
                raise wire.WireError(f"a result of more than {wire.MAX_PIECES:,} bytes")
        elif kind == "done" and not self.result.done():
            (last,) = fields
            self.result.set_result(bytes(self._pieces) + last if self._pieces else last)
        return kind == "done"

    def fail(self, error: PellucidError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


async def called(fleet: Fleet, kind: str, prompt: Sequence[int], body: dict[str, Any]) -> Any:
    """Return the result of a call. If this coroutine is cancelled, the call is cancelled too."""
    call = RemoteCall(kind, prompt, body)
    fleet.submit(call)
    try:
        return await call.result
    finally:
        fleet.cancel(call)
