"""The whole pipeline from text to text, on one page. This is the code that runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``build_plan`` defines the computation of a model. It runs once, when a model is loaded, and writes the plan that every
step executes (``pellucid plan MODEL`` prints it). ``step`` is one iteration of the engine's loop: it runs the next
tokens of all sequences through the plan, and passes the outputs to the tasks of the sequences.

A client makes a request. The request tokenizes its prompt (``engine/request.py``, ``tokenize/text_encoder.py``) and
submits a task. A task is any work that needs the model (``engine/tasks/``): text generation, beam search, scoring,
sentence embedding. A job is a task in the scheduler (``engine/job.py``). For text generation, ``process`` calls
``TextSequence.sample`` (``engine/tasks/generation.py``), which applies the softmax and
samples a token (``sample/chain.py``), detokenizes it (``tokenize/stages/decode.py``) and checks the stop criteria.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.engine.engine import Engine
from pellucid.kernels.matmul.layouts import PackedLayout
from pellucid.model.shapes import ENCODER
from pellucid.model.spec import ModelSpec
from pellucid.plan.attention import add_source_layers, write_source
from pellucid.plan.block import block, per_layer_embeddings, spread_streams
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import convolution, embed, embedding_norm, question_type
from pellucid.plan.outputs import final_norm, output_layers, project, select_rows
from pellucid.plan.passes import optimize
from pellucid.plan.plan import Plan
from pellucid.plan.position import position, relative_embedding
from pellucid.util.interpreter import explain_calls


def build_plan(
    spec: ModelSpec, layouts: Mapping[str, PackedLayout], activation_bits: int = 8, kv_dtype: str | None = None
) -> Plan:
    """The plan of a model: token ids (T,) → logits (R, V), sentence vectors (B, D) or scores of labels (B, N).

    ``layouts`` is the packed layout of each matrix. ``activation_bits`` (8, 16 or 24) is the number of bits of
    quantised activations. ``kv_dtype`` is the dtype of keys and values (``plan/builder.py``).
    """
    plan = optimize(unoptimized_plan(spec, layouts, activation_bits, kv_dtype))
    if spec.encoder:
        plan = replace(plan, encoder=optimize(encoder_plan(spec, layouts, activation_bits, kv_dtype)))
    return plan


def unoptimized_plan(
    spec: ModelSpec, layouts: Mapping[str, PackedLayout], activation_bits: int = 8, kv_dtype: str | None = None
) -> Plan:
    """The plan before the optimization passes, stage by stage. Arguments as in :func:`build_plan`."""
    builder = Builder(spec, layouts, activation_bits, kv_dtype)
    x = _hidden(builder)
    x = select_rows(builder, x)  # only the rows that the output needs                 (R, D)
    x = final_norm(builder, x)
    x = output_layers(builder, x)  # pooling and the layers of a classifier, in encoders (B, N)
    x = project(builder, x)  # a score for every token of the vocabulary      (R, V)
    return builder.finish(x)


def encoder_plan(
    spec: ModelSpec, layouts: Mapping[str, PackedLayout], activation_bits: int = 8, kv_dtype: str | None = None
) -> Plan:
    """The plan of the encoder of an encoder-decoder, before the passes: sources (T,) → keys and values in the cache."""
    assert spec.encoder
    own = replace(spec.encoder, context=spec.context)
    builder = Builder(own, layouts, activation_bits, kv_dtype, ENCODER)
    add_source_layers(builder, spec)
    write_source(builder, spec, final_norm(builder, _hidden(builder)))
    return builder.finish("")


def _hidden(builder: Builder) -> str:
    """The stages from the embedding to the last block. Returns the buffer of the residual stream."""
    spec = builder.spec
    x = embed(builder)  # each token's row of the embedding matrix           (T, D)
    x = position(builder, x)  # adds a vector, or computes the angles that rotate queries and keys
    x = embedding_norm(builder, x)
    relative_embedding(builder)  # vectors of relative positions, once at load, in some models    (R, D)
    convolution(builder, x)  # of neighbouring tokens, in some models                (T, D)
    per_layer_embeddings(builder, x)  # a vector for each block, in some models            (T, L P)
    spread_streams(builder, x)  # several residual streams, in some models               (T, S D)
    for layer, block_spec in enumerate(spec.blocks):
        question_type(builder, layer, x)  # before the blocks that answer a question, in some models
        x = block(builder, layer, block_spec, x)  # attention and feed-forward, each added to x (T, D)
    return x


def step(engine: Engine) -> None:
    """Run the next tokens of all sequences that can run, together. The engine repeats this until no request is left."""
    scheduled = engine.schedule()  # some tokens of each sequence, within the limits of a step
    outputs, seconds = engine.forward(scheduled)  # embed → +position → blocks ×L → norm → project
    for one, logits in zip(scheduled, outputs):
        # A generator, which ``deliver`` runs token by token: softmax → sample → detokenize → text.
        results = one.task.process(one.sequence, logits, seconds)
        engine.deliver(one, results)
    engine.finish(scheduled)


# ``from pellucid import pipeline`` is this module; transformers has a function of this name.
explain_calls(__name__, "pellucid.load(MODEL).generate(PROMPT) makes text")
