"""A request holds a prompt, the sequences that continue it, and their outputs so far; it returns the results.

``local_request.py`` runs a request on an engine of this process, ``cluster/`` on replicas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.output import Beams, Generation, Timings, TokenOutput, Usage
from pellucid.engine.recorder import EngineRecorder, RequestTracer
from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.errors import InvalidRequest
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.chain import SEED_BITS, Chain, TokenTrace
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined
from pellucid.sample.options import Options

if TYPE_CHECKING:
    from pellucid.receipts.issuer import ReceiptIssuer
    from pellucid.receipts.receipt import ModelIdentity, Receipt
    from pellucid.sample.beams import BeamOptions


class RequestOptions(Struct, frozen=True):
    """The checked options of a request: generation options, scheduling options, and traces and edits of its values.

    ``receipts`` makes the receipts of its answers (None: no receipts). ``given`` are the generation options by name,
    and ``edits`` and ``probes`` what ``watching`` applies, for a backend that sends them to another process.
    """

    generation: Options
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING
    watching: RequestTracer | None = None
    receipts: ReceiptIssuer | None = None
    given: Mapping[str, Any] = {}
    edits: Sequence[Any] = ()
    probes: Sequence[Any] = ()


@dataclass(frozen=True)
class PromptOutput:
    """The output of a request's prefill.

    ``cached`` is the number of tokens from the prefix cache, ``queue`` the seconds until the first step. ``logprobs``
    is None if log-probabilities were not requested. ``identity`` identifies the model if a receipt was requested.
    """

    cached: int = 0
    queue: float = 0.0
    logprobs: Logprobs | None = None
    identity: ModelIdentity | None = None


class SequenceOutput:
    """The output of one sequence so far: its tokens, and the time of each token in seconds from the start.

    ``prompt`` is the cached sequence that holds the prompt; None if the request runs in another process.
    """

    def __init__(self, chain: Chain, options: Options, prompt: CachedSequence | None = None) -> None:
        self.chain, self.options, self.prompt = chain, options, prompt
        self.ids: list[int] = []
        self.times: list[float] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.trace: list[TokenTrace] = []
        self.digests: list[bytes] = []
        self.receipt: Receipt | None = None  # after the end, once it was asked for
        self.held: list[str] = []
        self.pages: list[int] = []
        self.probe_scores: list[dict[str, float]] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.prefill_seconds = self.first = self.total = self.model = 0.0

    @property
    def cached(self) -> int:
        """Number of prompt tokens that came from the prefix cache."""
        return (self.prompt.cached or 0) if self.prompt else 0

    @property
    def ended(self) -> bool:
        """True if the last token has arrived."""
        return self.finish_reason is not None

    @property
    def scores_by_probe(self) -> dict[str, list[float]] | None:
        """The scores of each linear probe by token; None without probes."""
        rows = self.probe_scores
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else None

    def add_or_stop(self, token: TokenOutput, seconds: float) -> TokenOutput:
        """Add a token, and return it. If the request's ``until`` function returns True, the token ends the text.

        The finish reason is then "until", and the caller must stop the sequence.
        """
        until = self.options.until
        if (
            until
            and token.finish_reason not in ("stop", "probe")
            and until("".join(self.texts) + token.text + token.held)
        ):
            token = replace(token, text=token.text + token.held, finish_reason="until", held="")
        self.add(token, seconds)
        return token

    def add(self, token: TokenOutput, seconds: float) -> None:
        """Add a token that arrived ``seconds`` after the start."""
        self.total, self.model = seconds, self.model + token.model_seconds
        if not self.ids:
            self.first, self.prefill_seconds = seconds, token.model_seconds
        self.ids.append(token.id)
        if token.digest is not None:  # before the finish reason, after which another thread may make the receipt
            self.digests.append(token.digest)
        self.times.append(seconds)
        self.texts.append(token.text)
        self.finish_reason, self.stop_reason = token.finish_reason, token.stop_reason
        if token.logprobs is not None:
            self.logprobs.append(token.logprobs)
        if token.trace is not None:
            self.trace.append(token.trace)
            self.held.append(token.held)
            self.pages.append(token.pages)
        if token.probe_scores is not None:
            self.probe_scores.append(token.probe_scores)


class Request(ABC):
    """A prompt, and the sequences that continue it: one sequence for each sampler chain.

    The constructor checks the prompt and its options together, wherever the request runs. Generation continues after
    the tokens ``resumed`` of the answer. Logits are computed from position ``first_output`` on (None: only where the
    request needs them).

    Call ``start``, then ``wait`` or ``finished``; or iterate over ``stream``. Then read the ``results``.

    Attributes:
        prompt: the tokens of the prompt; in an encoder-decoder, of its source.
        decoder_ids: the tokens that are read before the first new token: the prompt and the resumed tokens.
        limit: maximum number of tokens of each answer.
        watching: the traces and edits of the request.
        receipts: makes the receipts of the answers.
        outputs: the output of each sequence.

    Raises:
        InvalidRequest: the prompt is empty, or an option does not fit the prompt or the model.
        ContextOverflow: the prompt leaves no room for an answer in the context.
        TemplateError: messages were given, and the chat template is missing or fails.
    """

    outputs: list[SequenceOutput]

    def __init__(
        self,
        inputs: Inputs,
        prompt: PromptInput,
        options: RequestOptions,
        resumed: Sequence[int] = (),
        first_output: int | None = None,
    ) -> None:
        self.options, self.scheduling = options.generation, options.scheduling
        self.watching, self.receipts = options.watching, options.receipts
        self.prompt = inputs.prompt(prompt)  # text → tokenize → ids
        alternatives, wanted = self.options.prompt_logprobs, self.options.max_new_tokens
        if inputs.spec.encoder and alternatives is not None:
            raise InvalidRequest(
                f"prompt_logprobs={alternatives}: the encoder reads the prompt, and predicts no tokens: leave it out"
            )
        begun = inputs.decoder_prompt(self.prompt)
        self.ends = self.options.ends(inputs.tokenizer, inputs.vocabulary)
        most = inputs.answer_limit(begun, None if wanted is None else wanted + len(resumed))
        self._sampler = partial(
            Chain.start,
            tokenizer=inputs.tokenizer,
            prompt=begun,
            ends=self.ends,
            vocabulary=inputs.vocabulary,
            limit=most,
        )
        """Starts the sampler of a chain."""
        self.decoder_ids = inputs.decoder_prompt(self.prompt, resumed) if resumed else begun
        self.limit = inputs.answer_limit(self.decoder_ids, wanted)
        if self.watching is not None:
            first_output = self.watching.first_output
        last = len(self.decoder_ids) - 1
        self._first_output = (
            0 if alternatives is not None else last if first_output is None else min(first_output, last)
        )

    def _begin_recorders(self, count: int, source: EngineRecorder | None = None) -> Sequence[EngineRecorder]:
        """The recorders of ``count`` sequences, if the request is watched. Raises: as ``RequestTracer.begin``."""
        if self.watching is None:
            return ()
        most = len(self.decoder_ids) + self.limit - 1  # the last token is not read
        first = self._first_output
        return self.watching.begin(self.decoder_ids, count, most=most, first_output=first, source=source)

    resumable = False
    """True if another server can take over the request. ``set_name`` sets the name by which the servers find it."""

    def set_name(self, name: str, resumes: bool) -> None:  # noqa: B027 - most requests need no name
        """Set the name that identifies the request on every server.

        ``resumes`` is True if a request with this name may already be running.

        If the options of the request have no seed, the seed is derived from the name.
        """

    @property
    @abstractmethod
    def prompt_output(self) -> PromptOutput:
        """The output of the prefill so far."""

    @property
    def prompt_read(self) -> int | None:
        """Number of the prompt's tokens that are read or cached; None while the number is unknown."""
        return len(self.prompt) if any(one.ids for one in self.outputs) else None

    @property
    @abstractmethod
    def speculation(self) -> list[tuple[int, int]]:
        """Number of draft tokens and number of accepted draft tokens, for each sequence."""

    @abstractmethod
    def start(self) -> None:
        """Start the request."""

    @abstractmethod
    def wait(self) -> None:
        """Block the thread until the request has ended. Runs the request if it has not been started."""

    @abstractmethod
    async def finished(self) -> None:
        """Wait in an event loop until the started request has ended. Cancelling the wait cancels the request."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[TokenOutput, None]:
        """Start the request, and yield its tokens. Raises QueueFull at the call, not at the first iteration.

        ``outputs`` may be ahead of the yielded token, because several tokens may arrive together.
        """

    @abstractmethod
    def close(self) -> None:
        """Cancel the request."""

    def unused_edits(self) -> list[str]:
        """Sentences about edits at positions that no sequence reached."""
        return unused_edits(self.watching, self.prompt, self.outputs)

    def results(self) -> list[Generation]:
        """The result of each sequence so far; ``finish_reason`` is None for a sequence that has not ended."""
        prompt, prefill = self.prompt, self.prompt_output
        speculation = self.speculation or [(0, 0)] * len(self.outputs)
        return [
            Generation(
                text="".join(one.texts),
                ids=list(one.ids),
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
                usage=Usage(len(prompt), prefill.cached, len(one.ids), proposed, accepted),
                timings=Timings(prefill.queue, one.prefill_seconds, one.first, one.total, one.model),
                seed=None if one.chain.greedy else one.chain.seed & ((1 << SEED_BITS) - 1),
                chain=one.chain.steps,
                logprobs=None if self.options.logprobs is None else joined(one.logprobs, self.options.logprobs),
                prompt_logprobs=prefill.logprobs,
                trace=one.trace if self.options.watch else None,
                receipt=self._receipt(one, prompt),
                probe_scores=one.scores_by_probe,
            )
            for one, (proposed, accepted) in zip(self.outputs, speculation)
        ]

    def _receipt(self, one: SequenceOutput, prompt: Sequence[int]) -> Receipt | None:
        """The receipt of a sequence; None without ``receipts``, or while the sequence has not ended."""
        if self.receipts is None or not one.ended:
            return None
        if one.receipt is None:
            run, ended = list(zip(one.ids, one.digests, strict=True)), (one.finish_reason, one.stop_reason)
            one.receipt = self.receipts.issue(prompt, self.limit, one.chain, run, ended, "".join(one.texts))
        return one.receipt

    def result(self) -> Generation:
        """The result of the first sequence so far, as in ``results``."""
        return self.results()[0]


def unused_edits(watching: RequestTracer | None, prompt: Sequence[int], outputs: Sequence[SequenceOutput]) -> list[str]:
    """As ``Request.unused_edits``, for functions that must hold no reference to the request."""
    if watching is None:
        return []
    generated = max((len(one.ids) for one in outputs), default=0)
    return watching.unused(len(prompt) + max(generated - 1, 0))


R = TypeVar("R", bound=Request, covariant=True)


class Backend(Protocol[R]):
    """Runs the requests of a model: on an engine of this process, or over the wire on the replicas of a cluster."""

    @property
    def most_answers(self) -> int:
        """Maximum number of answers of a request."""
        ...

    def submit(self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, n: int, resumed: Sequence[int]) -> R:
        """A request for ``n`` answers, which continue the prompt and the tokens ``resumed``. It is not started.

        Raises: as ``Request``, and InvalidRequest if an option cannot be sent to the process that runs the request.
        """
        ...

    def search(self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, beams: BeamOptions) -> Beams:
        """Find the best continuations of a prompt. Raises: as ``LLM.beam_search``."""
        ...

    def state(self) -> EngineState:
        """A snapshot of the engine's state; the sum of all replicas' states."""
        ...

    def replica_states(self) -> ReplicaStates | None:
        """The state of each replica; None for an engine of this process."""
        ...


def run_together(requests: Sequence[Request]) -> None:
    """Run requests together until all have ended. An error in one request cancels the others and is raised."""
    with ExitStack() as stack:
        for request in requests:
            stack.enter_context(closing(request)).start()
        for request in requests:
            request.wait()
