"""The API reference: its pages, and the public names on each.

A name with an entry here is public (docs/versions.md). ``unlisted`` finds public names without an entry. Sphinx finds
types in signatures without an entry, because a missing entry is an error.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from website.commands import escaped
from website.docstrings import first_sentence

MODULES = ("pellucid", "pellucid.trace", "pellucid.tokenize", "pellucid.testing")
"""The modules whose ``__all__`` is public."""


@dataclass(frozen=True)
class Page:
    """A page of the reference: title, introduction in Markdown, and the names in order.

    ``more`` makes a further part of the page.
    """

    title: str
    about: str
    names: tuple[str, ...]
    more: Callable[[], str] | None = None


def step_options() -> str:
    """The options of the sampler steps as a table, in the order of the chain."""
    from pellucid.sample.step import options_of, steps

    rows = [
        f"| `{name}` | {escaped(field.metadata['help'])} | `{field.default!r}` | `{step.name}` |"
        for step in steps().values()
        for name, field in options_of(step).items()
    ]
    head = "## Options of the sampler steps\n\n| option | meaning | default | step |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _of(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names.split())


PAGES: Mapping[str, Page] = {
    "load": Page(
        "Load a model",
        "",
        (
            "pellucid.load",
            "pellucid.pull",
            "pellucid.list",
            "pellucid.weights.store.Installed",
            "pellucid.weights.sources.source.DownloadProgress",
            "pellucid.kernels.core.library.CompileProgress",
        ),
    ),
    "llm": Page(
        "A loaded model", "`pellucid.load` returns an `LLM` ([examples](../index.md#in-python)).", ("pellucid.LLM",)
    ),
    "options": Page(
        "Generation options",
        "All methods that generate text take these options by name: the fields of `Options`, and the options of the "
        "sampler steps. [From logits to text](../sampling.md) explains the options with examples.",
        (
            "pellucid.sample.options.Options",
            "pellucid.sample.beams.BeamOptions",
            "pellucid.engine.job.SchedulingOptions",
        ),
        step_options,
    ),
    "results": Page(
        "Results",
        "What the methods of `LLM` return.",
        (
            "pellucid.Generation",
            *_of("pellucid.engine.output", "TokenOutput Usage Timings"),
            *_of("pellucid.sample.logprobs", "Logprobs TokenLogprobs"),
            "pellucid.sample.chain.TokenTrace",
            "pellucid.sample.logprobs.StepTrace",
            "pellucid.sample.chain.Draw",
            *_of("pellucid.engine.output", "Score Beams BeamText"),
            "pellucid.sample.beams.Node",
            "pellucid.engine.local_request.LocalRequest",
            *_of("pellucid.engine.request", "Request SequenceOutput PromptOutput"),
            "pellucid.engine.state.EngineState",
        ),
    ),
    "receipts": Page(
        "Receipts",
        "What `receipt=True` and `llm.verify_receipt` return ([Receipts](../receipts.md)).",
        (
            *_of("pellucid.receipts.receipt", "Receipt ReceiptRequest ModelIdentity EditRecord"),
            *_of("pellucid.receipts.receipt", "Signature Signer"),
            "pellucid.receipts.issuer.ModelIdentifier",
            "pellucid.receipts.issuer.ReceiptIssuer",
            "pellucid.receipt_check.ReceiptCheck",
        ),
    ),
    "encoders": Page(
        "Results of encoders",
        "What `llm.rerank`, `llm.classify`, `llm.tag`, `llm.fill` and `llm.answer` return, and the input of "
        "`llm.encode`.",
        (
            *_of("pellucid.encoders", "ranking.RankedDocument tasks.Classification tasks.Tag"),
            *_of("pellucid.encoders", "tasks.FilledToken tasks.AnswerSpan"),
            "pellucid.engine.encoder_inputs.EncoderInput",
        ),
    ),
    "decisions": Page(
        "Decisions",
        "What `llm.decide` returns ([example](../guides/see-a-decision.md)).",
        (
            *_of("pellucid.decide.questions", "Decisions Decision"),
            *_of("pellucid.decide.questions", "Question Option"),
            *_of("pellucid.decide.questions", "DecisionExplanation ExplainedWord"),
            *_of("pellucid.decide.decider", "Decider"),
            *_of("pellucid.decide.prompts", "DecisionPrompt Reading"),
            *_of("pellucid.decide.labels", "Label LabelScheme"),
            "pellucid.decide.labels.DecisionFormat",
        ),
    ),
    "trace": Page(
        "Traces, recorded runs and datasets",
        "[Watching and changing a run](../tracing.md) explains points, traces and edits with examples, "
        "[Features and datasets](../features.md#datasets-of-activations) datasets.",
        (
            *_of("pellucid.trace.trace", "Trace SequenceTrace"),
            *_of("pellucid.trace.export", "Exportable LabelledArray Axis"),
            *_of("pellucid.trace.frames", "TraceFrame NormFrame TraceStream"),
            "pellucid.trace.selection.Selection",
            "pellucid.trace.RecordedRun",
            "pellucid.trace.ActivationDataset",
            "pellucid.trace.dataset.columns.RowArray",
            *_of("pellucid.trace.dataset.index", "DatasetIndex ShardRecord"),
            "pellucid.trace.dataset.columns.StoredColumn",
            "pellucid.trace.dataset.index.DatasetProgress",
            *_of("pellucid.trace", "ControlVector LinearProbe RegisteredVectors"),
            *_of("pellucid.plan.points", "Point View AttentionMask"),
        ),
    ),
    "edits": Page(
        "Edits",
        "Functions that make an edit for `edits=[...]` ([examples](../tracing.md#edits)). `where` is the name of a "
        "point, with an optional bracket: `blocks.3.attention.heads[heads=2]`.",
        (
            *_of("pellucid.trace", "ablate scale add replace mask call"),
            *_of("pellucid.trace", "forbid_expert force_expert forbid_token force_token"),
            *_of("pellucid.trace.edits", "Edit"),
            *_of("pellucid.trace.edits", "CallContext"),
            *_of("pellucid.trace.positions", "Positions RelativeRange TokenTexts"),
        ),
    ),
    "dictionaries": Page(
        "Dictionaries of features",
        "SAEs, transcoders, cross-layer transcoders and crosscoders "
        "([examples](../features.md#dictionaries-of-features)).",
        (
            "pellucid.trace.Dictionary",
            *_of("pellucid.trace.dictionaries.sparse_coder", "SparseCoder ActiveFeatures FeatureEncoder"),
        ),
    ),
    "lenses": Page(
        "Lenses",
        "Analyses of a loaded model ([examples](../lenses.md)).",
        (
            "pellucid.trace.logit_lens",
            *_of("pellucid.trace.lenses.logit_lens", "LogitLens Transport"),
            "pellucid.trace.label_lens",
            "pellucid.trace.lenses.logit_lens.LabelLens",
            "pellucid.trace.attribute",
            *_of("pellucid.trace.lenses.attribution", "Attribution"),
            *_of("pellucid.trace.lenses.attribution", "Contribution"),
            "pellucid.trace.token_contributions",
            *_of("pellucid.trace.lenses.heads", "TokenContributions ContributingToken"),
            "pellucid.trace.relevance",
            "pellucid.trace.lenses.relevance.Relevance",
            *_of("pellucid.trace", "causes find_heads raised_tokens"),
            *_of("pellucid.trace.why", "Causes Cause ReadingHead"),
            *_of("pellucid.trace", "head_scores heads_between position_of rollout"),
            *_of("pellucid.trace.lenses.heads", "HeadScores HeadLook"),
            *_of("pellucid.trace", "sweep patch_sweep path_patch causal_trace ablation_sweep knockout_sweep"),
            "pellucid.trace.lenses.targets.Sweep",
            *_of("pellucid.trace", "logit_difference probability log_probability divergence"),
            *_of("pellucid.trace.lenses.targets", "LogitDifference LogProbability DivergenceFrom"),
            *_of("pellucid.trace", "gradients attribution_patch integrated_gradients"),
            *_of("pellucid.trace.backward.gradients", "Gradients TokenAttribution"),
            *_of("pellucid.trace", "attribution_graph check_graph promoted_tokens"),
            *_of("pellucid.trace.graphs.attribution_graph", "AttributionGraph GraphEdge"),
            "pellucid.trace.graphs.graph_files.GraphNode",
            "pellucid.trace.graphs.graph_files.NeuronPlace",
            "pellucid.trace.graphs.build.GraphCheck",
            "pellucid.trace.JacobianLens",
            "pellucid.trace.difference",
            *_of("pellucid.trace.lenses.comparison", "RunDifference PointDifference"),
            *_of("pellucid.trace", "features top_examples"),
            *_of("pellucid.trace.lenses.features", "FeatureTable FeatureValue FeatureExample"),
            *_of("pellucid.trace", "neighbours similarity vector_of word_map"),
            *_of("pellucid.trace.traced_model", "TracedModel OpenedModel"),
        ),
    ),
    "tokenize": Page(
        "Tokenizers",
        "[Tokenizers](../tokenizers.md) explains the stages, compatibility and limits.",
        (
            *_of("pellucid.tokenize", "load_tokenizer Tokenizer Encoding Padding Truncation StreamDecoder"),
            *_of("pellucid.tokenize.encoding", "Token TokenTable"),
            *_of("pellucid.tokenize.explain", "Explanation PreToken ExplainedToken"),
            *_of("pellucid.tokenize.stages.decode", "CharacterGroup CharacterGrouper"),
        ),
    ),
    "plan": Page(
        "Plans",
        "`llm.plan` is the list of operations that each step runs; `pellucid plan MODEL` prints it.",
        _of(
            "pellucid.plan.plan",
            "Plan Operation Buffer At Weights Vector Constant Fill Cache CacheGroup PageBytes ScoreBias",
        ),
    ),
    "spec": Page(
        "Model specs",
        "`llm.spec` describes the architecture of a model. [Add a model family](../guides/add-a-family.md) shows how a "
        "family makes a spec from a file.",
        (
            *_of("pellucid.model.spec", "ModelSpec Embedding Block Norm Attention Latent FeedForward Router Mixture"),
            *_of("pellucid.model.spec", "DeltaNet Mamba ShortConvolution PerLayer AltUp DecisionBlocks"),
            *_of("pellucid.model.spec", "RelativeEmbedding TokenConvolution"),
            *_of("pellucid.model.outputs", "Head Pooling Dense UnitLength Labels PairPrompt"),
            *_of("pellucid.model.positions", "Learned Sinusoidal Rotary RotaryScaling QueryScale"),
            *_of("pellucid.model.positions", "RelativeBuckets RelativePositions"),
        ),
    ),
    "evaluate": Page(
        "Perplexity and divergence",
        "[Measuring](../measuring.md) explains the figures.",
        _of("pellucid.evaluate", "perplexity divergence Perplexity Divergence Estimate"),
    ),
    "steps": Page(
        "Sampler steps of your own",
        "`samplers=[...]` takes objects of your own classes ([Add a sampler step](../guides/add-a-sampler-step.md)).",
        (
            *_of(
                "pellucid.sample.step", "SamplerStep option TokenHistory TokenCounts RequestContext TokenizerProtocol"
            ),
            *_of("pellucid.sample.candidates", "Candidates Sums"),
        ),
    ),
    "testing": Page(
        "Random models",
        "Models of any family with random weights, for tests and measurements.",
        _of("pellucid.testing", "random_model planned_model"),
    ),
    "errors": Page(
        "Errors",
        "Every error that Pellucid raises on purpose derives from `PellucidError`, and from the built-in exception "
        "that a Python programmer expects.",
        _of(
            "pellucid.errors",
            "PellucidError InvalidRequest BodyTooLong ContextOverflow NothingLeft NotFound ModelNotFound "
            "SourceError DownloadInterrupted FileFormatError UnsupportedModel UnsupportedTask TemplateError CacheFull "
            "QueueFull DeadlinePassed KernelError",
        ),
    ),
}

OMITTED: Mapping[str, str] = {
    "pellucid.sample.options.Options": "chain ends skipped stop_criteria",
    "pellucid.engine.local_request.LocalRequest": "attach",
    "pellucid.engine.request.Request": "set_name",
    "pellucid.engine.request.SequenceOutput": "add add_or_stop",
    "pellucid.trace.trace.Trace": "watching",
    "pellucid.trace.frames.TraceStream": "recorders put",
}
"""Methods of public classes that only Pellucid itself calls."""

INTERNAL = frozenset(
    (
        *_of("pellucid.engine", "speculation.DraftModel engine.Engine inputs.Inputs model_runner.ModelRunner"),
        *_of("pellucid.engine", "recorder.RequestTracer request.RequestOptions state.ReplicaStates"),
        *_of(
            "pellucid", "kernels.core.definitions.KernelKey runtime.cached_sequence.CachedSequence sample.chain.Chain"
        ),
        *_of("pellucid", "model.weight_map.Model weights.checkpoint.Checkpoint tokenize.stages.decode.Decoder"),
        *_of(
            "pellucid.trace", "sequence_recorder.SequenceRecorder control_vector.Control dataset.shard_file.ShardLayout"
        ),
        *_of("pellucid.decide", "prompts.ScoredOptions prompts.QuestionSpans"),
        *_of("pellucid.tokenize.encoding", "SliceableT"),
        *_of("pellucid.base_llm", "R"),
    )
)
"""Types in public signatures that are not public."""

WITH_BASES = {"pellucid.LLM"}
"""Classes whose entries have the members of their bases too."""


def names() -> list[str]:
    """All names with an entry."""
    return [name for page in PAGES.values() for name in page.names]


def resolved(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def unlisted() -> list[str]:
    """Public names without an entry: of ``__all__`` of ``MODULES``, and the errors."""
    public = {f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__} - {
        "pellucid.errors"
    }
    errors = vars(importlib.import_module("pellucid.errors")).values()
    public |= {
        f"pellucid.errors.{one.__name__}" for one in errors if inspect.isclass(one) and issubclass(one, Exception)
    }
    return sorted(public - set(names()))


def page(key: str, for_site: bool = True) -> str:
    """A page of the reference: for Sphinx, or as plain Markdown with the docstrings as they are."""
    made = PAGES[key]
    parts = [f"# {made.title}", made.about, *([made.more()] if made.more else [])]
    if for_site:
        entries = ["```{eval-rst}", *(_directive(name) for name in made.names), "```"]
    else:
        entries = [_plain(name) for name in made.names]
    return "\n\n".join([*(part for part in parts if part), *entries, ""])


def _directive(name: str) -> str:
    kind = resolved(name)
    if not inspect.isclass(kind):
        return f".. autofunction:: {name}"
    if issubclass(kind, BaseException):
        return f".. autoexception:: {name}"
    omitted = OMITTED.get(name, "")
    lines = [f".. autoclass:: {name}", "   :members:"]
    lines += ["   :inherited-members:"] if name in WITH_BASES else []
    return "\n".join([*lines, *([f"   :exclude-members: {', '.join(omitted.split())}"] if omitted else [])])


def _plain(name: str) -> str:
    """An entry in plain Markdown: the signature, the docstring, and the members of a class."""
    of = resolved(name)
    parts = [f"## {name}", _documented(name, of)]
    if inspect.isclass(of):
        kinds = of.__mro__ if name in WITH_BASES else (of,)
        for member, value in {name: value for kind in reversed(kinds) for name, value in vars(kind).items()}.items():
            if not member.startswith("_") and member not in OMITTED.get(name, "").split() and inspect.getdoc(value):
                value = getattr(value, "__func__", value)
                if inspect.isfunction(value):
                    parts.append(_documented(member, value))
                elif isinstance(value, property | cached_property):
                    parts.append(f"`{member}`: {inspect.getdoc(value)}")
    return "\n\n".join(parts)


def _documented(name: str, of: Any) -> str:
    shown = "" if inspect.isclass(of) and not is_structure(of) else str(inspect.signature(of))
    return f"```python\n{name.rpartition('.')[2]}{shown}\n```\n\n{inspect.getdoc(of) or ''}"


def is_structure(of: Any) -> bool:
    """True for a class whose constructor takes its fields. Programs do not construct the other classes."""
    return dataclasses.is_dataclass(of) or hasattr(of, "__struct_fields__") or hasattr(of, "_fields")


def index(for_site: bool = True) -> str:
    """The page that lists all public names."""
    parts = [
        "# API reference",
        "The public names of the Python package. The [README](../index.md#in-python) has examples.",
    ]
    for key, made in PAGES.items():
        shown = "{{py:obj}}`~{}`" if for_site else "`{}`"
        rows = [f"| {shown.format(name)} | {first_sentence(resolved(name))} |" for name in made.names]
        parts.append("\n".join([f"## [{made.title}]({key}.md)\n", "| name | |", "|---|---|", *rows]))
    return "\n\n".join([*parts, ""])
