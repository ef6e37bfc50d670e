"""A loaded model: generate, stream, chat, score, embed.

Example:
    import pellucid
    llm = pellucid.load("smollm2")
    llm.generate("The capital of France is", temperature=0, max_new_tokens=40).text
"""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.beam_search import search_beams
from pellucid.engine.draft import DraftModel
from pellucid.engine.embedding import EmbeddingTask
from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs, Message, PromptInput, several
from pellucid.engine.job import Admission
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Beams, Generation, Score
from pellucid.engine.probe import Watching
from pellucid.engine.request import Request, RequestGroup
from pellucid.engine.scoring import score
from pellucid.engine.state import EngineState
from pellucid.engine.text_group import run_together
from pellucid.errors.messages import shown
from pellucid.kernels.core.library import CompileProgress as CompileProgress
from pellucid.sample.beams import BeamOptions
from pellucid.sample.chain import Chain
from pellucid.sample.options import CHECKS, Options
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.chat.conversation import conversation
from pellucid.trace.edits import EditOf
from pellucid.tracing import TracingModel, warn_all, warn_unused
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import Checkpoint, stored_bytes

MAX_SAMPLES = 256


class LLM(TracingModel):
    """A loaded model with its tokenizer, as returned by ``pellucid.load``.

    A language model has ``generate``, ``stream``, ``chat``, ``start``, ``samples``, ``beam_search`` and ``score``; a
    sentence encoder has ``embed``. A method that the model does not support raises InvalidRequest. Methods may be
    called from several threads; their requests run in the same steps.

    Attributes:
        tokenizer: text → token ids and back.
        checkpoint: the open model file, with its metadata and tensors.
        inputs: checks prompts and turns them into token ids.
        engine: runs the steps of all requests.
        runner: runs and profiles single steps, and gives access to their buffers.
        recommended: the sampling options that the file recommends; they are the defaults of ``generate`` and ``chat``.
        draft: the draft model, None if the model was loaded without a draft model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        recommended: Mapping[str, Any] | None = None,
        draft: LLM | None = None,
    ) -> None:
        self.checkpoint, self.runner, self.tokenizer = checkpoint, runner, tokenizer
        self.recommended = dict(recommended or {})
        self.inputs = Inputs(runner.spec, tokenizer, runner.limits.context)
        self.draft = draft
        self.engine = Engine(runner, draft=_draft_model(self.inputs, draft))
        super().__init__()

    def for_client(self, client: str) -> LLM:
        """The same loaded model for a client. All requests of a client share the client's part of the machine.

        Closing the returned object closes the model.
        """
        own = copy.copy(self)
        own.admission = Admission(client=client)
        return own

    def __repr__(self) -> str:
        return f"LLM({self.spec!r}, threads {self.runner.threads}, from {shown(str(self.checkpoint.path))})"

    @property
    def context(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return self.runner.limits.context

    @property
    def width(self) -> int:
        """Columns of the output: V for a language model, D for an encoder."""
        return self.runner.width

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, including the draft model's weights."""
        return stored_bytes(self.checkpoint) + (self.draft.weight_bytes if self.draft else 0)

    def state(self) -> EngineState:
        """A snapshot of the engine's state."""
        engine, runner = self.engine, self.runner
        return EngineState(
            engine.running,
            engine.waiting,
            engine.steps,
            engine.step_seconds,
            engine.preemptions,
            runner.cache.kv.pages,
            engine.pages_in_use,
            runner.cache.prefixes.nbytes,
            runner.threads,
            tuple(runner.stage_seconds),
        )

    def replica_states(self) -> None:
        """None: a model in this process has no replicas."""

    @overload
    def generate(self, prompt: PromptInput, **options: Any) -> Generation: ...

    @overload
    def generate(self, prompt: Sequence[PromptInput], **options: Any) -> list[Generation]: ...

    def generate(
        self, prompt: PromptInput | Sequence[PromptInput], **options: Any
    ) -> Generation | list[Generation]:
        """Continue a prompt, and return the text with its tokens, its finish reason and its timings.

        Args:
            prompt: a text, chat messages ({"role": ..., "content": ...}), or token ids; or a list of prompts, which run
                together. Each prompt gets the same bits as alone.
            options: the fields of ``Options``, such as ``max_new_tokens``, ``seed`` and ``stop``, and the options of
                the sampler steps (``sample/steps/``), such as ``temperature`` and ``top_p``; see docs/sampling.md.
                Defaults are the values that the model's file recommends (``recommended``), else the steps' defaults.
                ``priority`` (a whole number, 0) and ``deadline`` (seconds) schedule the request among others
                (``engine/job.py``).

        Raises:
            InvalidRequest: an option is unknown or out of range, the prompt is empty, or the model does not generate
                text.
            ContextOverflow: the prompt leaves no room for an answer in the context.
            TemplateError: messages were given, and the chat template is missing or fails.
            NothingLeft: the options forbid every token.
            CacheFull: the request does not fit into the cache by itself.
            DeadlinePassed: the request did not end within its ``deadline``.
        """
        how, watching, prompts = (
            self.admission.with_options(options),
            self._watching(options),
            several(prompt),
        )
        asked, parsed = [prompt] if prompts is None else prompts, self._options(options)
        groups = [
            self._request_group(one, parsed, [parsed.chain()], how, watching)  # type: ignore[arg-type]
            for one in asked
        ]
        run_together(groups)
        warn_unused(*groups)
        made = [group.results()[0] for group in groups]
        return made[0] if prompts is None else made

    async def agenerate(self, prompt: PromptInput, **options: Any) -> Generation:
        """As ``generate``, for an event loop. Concurrent calls run together."""
        group = self.request(prompt, **options)
        async with aclosing(group.stream()) as outputs:
            async for _ in outputs:
                pass
        warn_unused(group)
        return group.results()[0]

    async def astream(self, prompt: PromptInput, **options: Any) -> AsyncGenerator[str, None]:
        """As ``stream``, for an event loop: ``async for text in llm.astream(...)``."""
        group = self.request(prompt, **options)
        async with aclosing(group.stream()) as outputs:
            async for _, output in outputs:
                if output.text:
                    yield output.text
        warn_unused(group)

    def stream(self, prompt: PromptInput, **options: Any) -> Iterator[str]:
        """Continue a prompt as ``generate`` does, and yield each piece of text as soon as it is final.

        This call raises errors in the request, before the first piece.
        """
        request = self.start(prompt, **options)
        return (output.text for output in request if output.text)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a conversation: [{"role": "user", "content": "Hi"}, ...].

        Takes the options of ``generate`` and raises the same errors.
        """
        return self.generate(conversation(messages), **options)

    def start(self, prompt: PromptInput, **options: Any) -> Request:
        """Start a generation: iterate over its token outputs, then read its ``result``.

        Takes the options of ``generate`` and raises the same errors. This call raises errors in the request.
        """
        return Request(self.request(prompt, **options), warn_unused)

    def samples(
        self, prompt: PromptInput, n: int, *, best_of: int | None = None, **options: Any
    ) -> list[Generation]:
        """Generate ``n`` answers to one prompt together. They share the prompt's pages in the cache, and the steps.

        Each answer has its own random numbers, which depend only on the seed and the answer's number. The first answer
        equals the answer of ``generate``. With ``best_of``, ``best_of`` answers are generated, and the ``n`` answers
        with the highest mean log-probability per token are returned, best first.

        Raises: as ``generate``, and InvalidRequest if ``n`` or ``best_of`` is out of range.
        """
        n = whole("n", n, 1, MAX_SAMPLES)
        count = n if best_of is None else whole("best_of", best_of, n, MAX_SAMPLES, "at least n")
        how, watching = self.admission.with_options(options), self._watching(options)
        parsed = self._options(options)
        if best_of is not None and parsed.logprobs is None:
            parsed = replace(parsed, logprobs=0)
        chains, generations = parsed.chain().with_seeds(count), list[Generation]()
        most = self.runner.limits.sequences
        end = None if parsed.max_time is None else time.perf_counter() + parsed.max_time
        for first in range(0, count, most):  # later batches find the prompt in the prefix cache
            if end is not None and first:
                parsed = replace(parsed, max_time=max(end - time.perf_counter(), 1e-9))
            group = self._request_group(prompt, parsed, chains[first : first + most], how, watching)
            run_together([group])
            warn_unused(group)
            generations += group.results()
        if best_of is not None:
            generations.sort(key=lambda one: -one.mean_logprob)
        return generations[:n]

    def beam_search(self, prompt: PromptInput, **options: Any) -> Beams:
        """Find the best whole continuations of a prompt by beam search.

        ``options`` are the fields of ``BeamOptions``, such as ``num_beams``, and the options of ``generate``, except
        options for a single text during generation: stop strings, ``until``, log-probabilities, ``watch``.

        Raises: as ``generate``.
        """
        beams = BeamOptions.taken_from(options)
        how, watching = self.admission.with_options(options), self._watching(options)
        self._refuse_frames("a search knows its texts when it has ended")
        parsed = Options.of(vars(beams), **options)
        found = search_beams(self.engine, self.inputs, prompt, parsed, beams, how, watching)
        if watching is not None:
            warn_all(watching.unused(found.usage.prompt_tokens + found.longest - 1))
        return found

    def request(self, prompt: PromptInput, n: int = 1, /, **options: Any) -> RequestGroup:
        """Check a request for ``n`` answers without starting it, for programs that run many requests.

        Takes the options of ``generate`` and raises the same errors.
        """
        how, watching = self.admission.with_options(options), self._watching(options)
        parsed = self._options(options)
        n = whole("n", n, 1, self.runner.limits.sequences)
        return self._request_group(prompt, parsed, parsed.chain().with_seeds(n), how, watching)

    def _request_group(
        self,
        prompt: PromptInput,
        options: Options,
        chains: list[Chain],
        how: Admission,
        watching: Watching | None = None,
    ) -> RequestGroup:
        return RequestGroup(self.engine, self.inputs, prompt, options, chains, how, watching)

    def score(
        self,
        text: PromptInput,
        *,
        given: str | None = None,
        top: int = 0,
        edits: Sequence[EditOf] | None = None,
    ) -> Score:
        """Compute the log-probability of each token of a text, and of the ``top`` most likely tokens at its position.

        ``given`` is a text before ``text``. Its own tokens are not scored, so that answers to the same question can be
        compared.

        Raises:
            InvalidRequest: no token can be scored (the first token has no context), ``given`` is not a text, the model
                does not generate text, or ``top`` is out of range.
            ContextOverflow: the text does not fit into the context.
        """
        top = CHECKS["logprobs"]("top", top)
        ids, unscored = self.inputs.scored(text, given)
        watching = self._watching({"edits": edits})
        first, size = max(unscored, 1), self.inputs.vocabulary
        return Score(ids, score(self.engine, ids, top, size, first, watching, self.admission))

    def embed(
        self, texts: Sequence[str], *, truncate: bool = False, edits: Sequence[EditOf] | None = None
    ) -> NDArray[np.float32]:
        """Compute the sentence vectors of texts: float32 (len(texts), D), of length 1 if the model normalises them.

        ``truncate`` shortens texts that are longer than the context, instead of raising ContextOverflow.

        Raises:
            InvalidRequest: there are no texts, a text is empty, or the model is not a sentence encoder.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        return self.embed_tokens(self.inputs.sentences(texts, truncate), edits)

    def embed_tokens(
        self, encoded: Sequence[list[int]], edits: Sequence[EditOf] | None = None
    ) -> NDArray[np.float32]:
        """Compute the sentence vectors of token ids (from ``inputs.sentences``), as ``embed``."""
        out = np.empty((len(encoded), self.runner.width), np.float32)
        watching = self._watching({"edits": edits})
        for number, vector in self.engine.run(
            EmbeddingTask(self.engine.cache, encoded, watching), self.admission
        ):
            out[number] = vector
        return out

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all requests, stop the threads and close the file. The model cannot be used afterwards."""
        self.engine.close()
        if self.draft:
            self.draft.close()
        self.runner.close()
        self.checkpoint.close()


def _draft_model(inputs: Inputs, draft: LLM | None) -> DraftModel | None:
    if draft is None:
        return None
    return DraftModel(draft.runner, min(inputs.vocabulary, draft.inputs.vocabulary))
