"""A loaded model: generate, stream, chat, score, embed, rerank, classify, fill, tag, answer.

The file is over 420 lines because all methods of a model are here, each in a few lines.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.base_llm import BaseLLM
from pellucid.engine.encoder_inputs import EncoderInput, Texts, TextsOrPairs
from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs, Message, PromptInput, several
from pellucid.engine.local_request import EngineBackend, LocalRequest
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Generation, Score
from pellucid.engine.request import run_together
from pellucid.engine.speculation import DraftModel
from pellucid.engine.task import ReadingTask
from pellucid.errors import InvalidRequest, brief, shown
from pellucid.generate_options import GenerationOptions, TextOptions
from pellucid.kernels.core.library import CompileProgress as CompileProgress
from pellucid.load_options import LoadOptions
from pellucid.plan.plan import Plan
from pellucid.plan.points import Point
from pellucid.runtime.processors import machine_bytes
from pellucid.sample.options import CHECKS
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.chat.conversation import conversation
from pellucid.tokenize.load import why_base
from pellucid.trace.budget import BUDGET, MOST_LIMIT
from pellucid.tracing import DIVIDED, refuse_late, warn_all, warn_unused
from pellucid.util import checks
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import Checkpoint, stored_bytes

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in ``typing`` since Python 3.11

    from pellucid.decide.decider import Decider
    from pellucid.decide.prompts import DecisionPrompt
    from pellucid.decide.questions import Decisions
    from pellucid.encoders.ranking import RankedDocument
    from pellucid.encoders.tasks import AnswerSpan, Classification, FilledToken, Grouping, Tag
    from pellucid.receipt_check import ReceiptCheck
    from pellucid.receipts.issuer import ModelIdentifier
    from pellucid.receipts.receipt import ModelIdentity, Receipt, Signer
    from pellucid.trace.backward.reverse_walk import Tape, TapeNeeds, Versions
    from pellucid.trace.dataset.activation_dataset import ActivationDataset
    from pellucid.trace.dataset.index import DatasetProgress
    from pellucid.trace.dictionaries.dictionary import Dictionary
    from pellucid.trace.edits import Edit
    from pellucid.trace.frames import TraceFrame, TraceStream
    from pellucid.trace.recorded_run import RecordedRun
    from pellucid.trace.trace import Trace
    from pellucid.trace.traced_model import ModelWeights

MAX_SAMPLES = 256
PROJECTED_ROWS = 64
"""Maximum number of vectors that are projected between two steps."""


class LLM(BaseLLM[LocalRequest]):
    """A loaded model with its tokenizer, as returned by ``pellucid.load``.

    A language model has ``generate``, ``stream``, ``chat``, ``start``, ``samples``, ``beam_search`` and ``score``. An
    encoder has the methods of its task (``spec.task``): ``embed``, ``sparse``, ``token_vectors``, ``classify``,
    ``fill``, ``tag`` or ``answer``, and ``rerank``. A method that the model does not support raises InvalidRequest.
    Methods may be called from several threads; their requests run in the same steps.

    Attributes:
        engine: runs the steps of all requests.
        runner: runs and profiles single steps, and gives access to their buffers.
        draft: the draft model, None if the model was loaded without a draft model.
    """

    backend: EngineBackend

    def __new__(cls, *parts: Any, **named: Any) -> LLM:
        if "model" in named or isinstance(next(iter(parts), None), (str, Path)):  # as vLLM's LLM(model=...)
            raise InvalidRequest("LLM(...) takes the parts of a loaded model: pellucid.load(MODEL) loads a model")
        return super().__new__(cls)

    def __init__(
        self,
        checkpoint: Checkpoint,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        recommended: Mapping[str, Any] | None = None,
        draft: DraftModel | None = None,
        loaded: LoadOptions | None = None,
        signer: Signer | None = None,
    ) -> None:
        self.runner, self.draft = runner, draft
        base = why_base(checkpoint, tokenizer)
        inputs = Inputs(runner.spec, tokenizer, runner.limits.context, why_base=base)
        self.engine = Engine(runner, pipeline.step, draft=draft)
        backend, points = EngineBackend(self.engine), partial(_points, runner)
        unwatched = DIVIDED if runner.stage else ""
        super().__init__(checkpoint, runner.model, inputs, recommended or {}, backend, points, unwatched, signer)
        self.dictionaries: Mapping[str, Dictionary] = {}
        """Dictionaries of features that requests to a server may name."""
        # Caches instead of cached properties, so that the copies for clients share the decider and the identity.
        self._identifier = cache(partial(_identifier, checkpoint, tokenizer, runner, loaded or LoadOptions()))
        self._decider = cache(partial(_decider, checkpoint, self.inputs))

    def __repr__(self) -> str:
        return f"LLM({self.spec!r}, threads {self.runner.threads}, from {shown(str(self.checkpoint.path))})"

    @property
    def identity(self) -> ModelIdentifier:
        """Computes the hashes that identify the model in receipts, and keeps them."""
        return self._identifier()

    @property
    def plan(self) -> Plan:
        """The operations that each step of the model runs, in order."""
        return self.runner.plan

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, including the draft model's weights."""
        return stored_bytes(self.checkpoint) + (self.draft.weight_bytes if self.draft else 0)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too, but it is one prompt
        self, prompt: PromptInput, **options: Unpack[GenerationOptions]
    ) -> Generation: ...

    @overload
    def generate(self, prompt: Sequence[PromptInput], **options: Unpack[GenerationOptions]) -> list[Generation]: ...

    def generate(
        self, prompt: PromptInput | Sequence[PromptInput], **options: Unpack[GenerationOptions]
    ) -> Generation | list[Generation]:
        """Continue a prompt, and return the text with its tokens, its finish reason and its timings.

        Args:
            prompt: a text, chat messages ({"role": ..., "content": ...}), or token ids; or a list of prompts, which run
                together. Each result equals the result of the prompt alone, bit for bit.
            options: the fields of ``Options``, such as ``max_new_tokens``, ``seed`` and ``stop``, and the options of
                the sampler steps (``sample/steps/``), such as ``temperature`` and ``top_p``; see docs/sampling.md.
                Defaults are the values that the model's file recommends (``recommended``), else the steps' defaults.
                ``priority`` (an integer, 0 by default) and ``deadline`` (seconds) control the scheduling of the
                request (``engine/job.py``).

        Raises:
            InvalidRequest: an option is unknown or out of range, the prompt is empty, or the model does not generate
                text.
            ContextOverflow: the prompt leaves no room for an answer in the context.
            TemplateError: messages were given, and the chat template is missing or fails.
            NothingLeft: the options forbid every token.
            CacheFull: the request does not fit into the cache by itself.
            DeadlinePassed: the request did not end within its ``deadline``.
        """
        prompts = several(prompt)
        if prompts is None:
            return self._run_together([self.request(prompt, **options)])[0]  # type: ignore[arg-type]
        return self._run_together([self.request(one, **options) for one in prompts])

    def _run_together(self, requests: Sequence[LocalRequest]) -> list[Generation]:
        run_together(requests)
        warn_unused(*requests, level=5)
        return [request.result() for request in requests]

    async def agenerate(self, prompt: PromptInput, **options: Unpack[GenerationOptions]) -> Generation:
        """As ``generate``, for an event loop. Concurrent calls run together."""
        request = self.request(prompt, **options)
        async with aclosing(request.stream()) as outputs:
            async for _ in outputs:
                pass
        warn_unused(request)
        return request.result()

    async def astream(self, prompt: PromptInput, **options: Unpack[GenerationOptions]) -> AsyncGenerator[str, None]:
        """As ``stream``, for an event loop: ``async for text in llm.astream(...)``."""
        request = self.request(prompt, **options)
        async with aclosing(request.stream()) as outputs:
            async for output in outputs:
                if output.text:
                    yield output.text
        warn_unused(request)

    def stream(self, prompt: PromptInput, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """Continue a prompt as ``generate`` does, and yield each piece of text as soon as it is final.

        An invalid request raises its error when ``stream`` is called, not at the first piece.
        """
        request = self.start(prompt, **options)
        return (output.text for output in request if output.text)

    def chat(self, messages: str | Sequence[Message], **options: Unpack[GenerationOptions]) -> Generation:
        """Answer a conversation: [{"role": "user", "content": "Hi"}, ...], or a text, the user's first message.

        Takes the options of ``generate`` and raises the same errors.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": checks.text("messages", messages)}]
        return self.generate(conversation(messages), **options)

    def start(self, prompt: PromptInput, **options: Unpack[GenerationOptions]) -> LocalRequest:
        """Start a generation: iterate over its token outputs, then read its ``result``.

        Without an iteration, ``result`` waits for the end. Between the tokens it returns the text so far.
        Takes the options of ``generate``. An invalid request raises its error when ``start`` is called, not later.
        """
        request = self.request(prompt, **options)
        request.on_end, request.runs_for_results = warn_all, True
        return request

    def samples(
        self, prompt: PromptInput, n: int, *, best_of: int | None = None, **options: Unpack[GenerationOptions]
    ) -> list[Generation]:
        """Generate ``n`` answers to one prompt in the same steps. The answers share the prompt's pages in the cache.

        Each answer has its own random numbers, which depend only on the seed and the answer's number. The first answer
        equals the answer of ``generate``. With ``best_of``, ``best_of`` answers are generated, and the ``n`` answers
        with the highest mean log-probability per token are returned, best first.

        Raises: as ``generate``, and InvalidRequest if ``n`` or ``best_of`` is out of range.
        """
        n = whole("n", n, 1, MAX_SAMPLES)
        count = n if best_of is None else whole("best_of", best_of, n, MAX_SAMPLES, "at least n")
        hidden = best_of is not None and options.get("logprobs") is None  # computed for the order only
        if hidden:
            options["logprobs"] = 0
        requests = self.backend.samples(self.inputs, prompt, self._request_options(dict(options)), count)
        warn_unused(*requests)
        generations = [one for request in requests for one in request.results()]
        if best_of is not None:
            generations.sort(key=lambda one: -one.mean_logprob)
        if hidden:
            generations = [replace(one, logprobs=None) for one in generations]
        return generations[:n]

    def request_with_values(
        self,
        prompt: PromptInput,
        points: Sequence[str],
        norms: Sequence[str] = (),
        /,
        *,
        resumed: Sequence[int] = (),
        **options: Any,
    ) -> tuple[LocalRequest, TraceStream]:
        from pellucid.trace.frames import TraceStream

        stream = TraceStream(self.points, points, MOST_LIMIT, norms=norms)
        return self.backend.submit(self.inputs, prompt, self._request_options(options, stream), 1, resumed), stream

    def _identity_here(self) -> ModelIdentity:
        return self.identity()

    def verify_receipt(
        self, receipt: Receipt | Mapping[str, Any], *, edits: Sequence[Edit] = (), signed_by: str | Path | None = None
    ) -> ReceiptCheck:
        """Replay the run of a receipt, and compare the tokens and the bits of all logits.

        Args:
            receipt: a ``Receipt``, or the field ``receipt`` of a server's answer.
            edits: the edits of the request, if they have arrays of values, which a receipt does not hold.
            signed_by: the file of a public key. The receipt must have a valid signature of this key.

        Raises:
            InvalidRequest: the value is not a receipt, ``edits`` are missing, the context is too short for the run, or
                the signature cannot be checked, because cryptography is not installed.
        """
        from pellucid.receipt_check import verify_receipt

        return verify_receipt(self, receipt, edits, signed_by)

    def score(
        self, text: PromptInput, *, given: PromptInput | None = None, top: int = 0, edits: Sequence[Edit] | None = None
    ) -> Score:
        """Compute the log-probability of each token of a text, and of the ``top`` most likely tokens at the position.

        ``given`` is context before ``text``, and its tokens are not scored. With a question as ``given``, the scores of
        several answers can be compared. In an encoder-decoder, ``given`` is the source, as a text or
        token ids, and ``text`` is an answer.

        Raises:
            InvalidRequest: no token can be scored (the first token has no context), ``given`` is not a text, the model
                does not generate text, or ``top`` is out of range.
            ContextOverflow: the text does not fit into the context.
        """
        top = CHECKS["logprobs"]("top", top)
        source, watching = None, self.tracing.tracer(edits)
        if self.spec.encoder:
            if given is None:
                raise InvalidRequest("an encoder-decoder scores answers to a source: use score(text, given=source)")
            source_ids, ids, unscored = self.inputs.target(text, given)
            source = self.engine.source(source_ids, watching)
        else:
            ids, unscored = self.inputs.scored(text, given)
        first, size = max(unscored, 1), self.inputs.vocabulary
        from pellucid.engine.tasks.scoring import score

        return Score(ids, score(self.engine, ids, top, size, first, watching, self.scheduling, source))

    def embed(
        self,
        texts: Texts,
        *,
        prompt: str = "",
        dimensions: int | None = None,
        truncate: bool = False,
        edits: Sequence[Edit] | None = None,
    ) -> NDArray[np.float32]:
        """Compute the sentence vectors of texts: float32 (B, D), of length 1 if the model normalises them.

        ``texts`` is a list, a generator or an array of texts; of one text the result is its vector (D,).
        ``prompt`` is the name of one of the model's prompts, such as "query", or a text; it is put before each text
        (``Inputs.prompt_of``). ``dimensions`` cuts the vectors to their first components (None: the length that the
        file states). ``truncate`` shortens texts that are longer than the context, instead of raising ContextOverflow.

        Raises:
            InvalidRequest: there are no texts, a text is empty, the model is not a sentence encoder, or it does not
                state that its vectors can be cut to this length.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        self.inputs.check_task("embed")
        from pellucid.encoders.tasks import embed

        vectors = embed(self, self.inputs.sentences(texts, truncate, prompt), dimensions, edits)
        return vectors[0] if isinstance(texts, str) else vectors

    @overload
    def sparse(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too, but it is one text
        self, texts: str, *, truncate: bool = ..., edits: Sequence[Edit] | None = ...
    ) -> dict[int, float]: ...

    @overload
    def sparse(
        self, texts: Iterable[str], *, truncate: bool = ..., edits: Sequence[Edit] | None = ...
    ) -> list[dict[int, float]]: ...

    def sparse(
        self, texts: Texts, *, truncate: bool = False, edits: Sequence[Edit] | None = None
    ) -> dict[int, float] | list[dict[int, float]]:
        """Compute the sparse vectors of texts: the weights above 0 by token id (SPLADE).

        A single text returns its vector. Errors as ``embed``.
        """
        self.inputs.check_task("sparse")
        from pellucid.encoders.tasks import sparse

        found = sparse(self, self.inputs.sentences(texts, truncate), edits)
        return found[0] if isinstance(texts, str) else found

    @overload
    def token_vectors(  # type: ignore[overload-overlap]
        self, texts: str, *, truncate: bool = ..., edits: Sequence[Edit] | None = ...
    ) -> NDArray[np.float32]: ...

    @overload
    def token_vectors(
        self, texts: Iterable[str], *, truncate: bool = ..., edits: Sequence[Edit] | None = ...
    ) -> list[NDArray[np.float32]]: ...

    def token_vectors(
        self, texts: Texts, *, truncate: bool = False, edits: Sequence[Edit] | None = None
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Compute a vector for each token of each text, (T, N) float32 (ColBERT).

        A single text returns its array. Errors as ``embed``.
        """
        self.inputs.check_task("tokens")
        from pellucid.encoders.tasks import token_vectors

        found = token_vectors(self, self.inputs.sentences(texts, truncate), edits)
        return found[0] if isinstance(texts, str) else found

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        instruction: str = "",
        top: int | None = None,
        truncate: bool = False,
        edits: Sequence[Edit] | None = None,
    ) -> list[RankedDocument]:
        """Sort documents by their relevance to a query: the ``top`` most relevant (None: all), best first.

        ``instruction`` says what makes a document relevant, for models that read an instruction ("": the model's
        default instruction).

        Raises:
            InvalidRequest: ``documents`` is not a list of texts, a text is empty, ``top`` is below 1, the model takes
                no instruction, or it has neither vectors nor a label of relevance.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        from pellucid.encoders.ranking import rerank

        return rerank(self, query, documents, instruction=instruction, top=top, truncate=truncate, edits=edits)

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, texts: str, *, truncate: bool = ..., edits: Sequence[Edit] | None = ...
    ) -> Classification: ...

    @overload
    def classify(
        self, texts: Iterable[str | tuple[str, str]], *, truncate: bool = ..., edits: Sequence[Edit] | None = ...
    ) -> list[Classification]: ...

    def classify(
        self, texts: TextsOrPairs, *, truncate: bool = False, edits: Sequence[Edit] | None = None
    ) -> Classification | list[Classification]:
        """Score the labels of texts, or of pairs of texts: ``[("a question", "a passage")]``.

        A single text returns its classification. A pair is always in a list: a tuple of texts is a list of texts.

        Raises:
            InvalidRequest: there are no texts, a text is empty, or the model has no classification head.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        self.inputs.check_task("classify")
        from pellucid.encoders.tasks import classify

        found = classify(self, self.inputs.texts(texts, truncate), edits)
        return found[0] if isinstance(texts, str) else found

    def fill(self, text: str, top: int = 5, *, edits: Sequence[Edit] | None = None) -> list[list[FilledToken]]:
        """Find the ``top`` most likely tokens for each mask of a text: "Paris is the [MASK] of France".

        Raises:
            InvalidRequest: the text has no mask, or the model is not a masked language model.
            ContextOverflow: the text is longer than the context.
        """
        self.inputs.check_task("fill")
        from pellucid.encoders.tasks import fill

        return fill(self, text, whole("top", top, 1, self.inputs.vocabulary), edits)

    def tag(self, text: str, grouping: Grouping = "simple", *, edits: Sequence[Edit] | None = None) -> list[Tag]:
        """Label the tokens of a text, such as named entities, with the characters that they cover.

        ``grouping`` joins the tokens of an entity (``encoders/tasks.py``).

        Raises:
            InvalidRequest: the grouping is unknown, or the model has no token classification head.
            ContextOverflow: the text is longer than the context.
        """
        self.inputs.check_task("tag")
        from pellucid.encoders.tasks import tag

        return tag(self, text, grouping, edits)

    def answer(
        self,
        question: str,
        text: str,
        *,
        top: int = 1,
        longest: int = 15,
        unanswerable: bool = False,
        edits: Sequence[Edit] | None = None,
    ) -> list[AnswerSpan]:
        """Find the ``top`` parts of a text that most likely answer a question, each of at most ``longest`` tokens.

        With ``unanswerable``, "no answer" is a possible answer. A long text is read in windows.

        Raises:
            InvalidRequest: a text is empty, or the model has no question answering head.
            ContextOverflow: the question leaves no room for the text.
        """
        self.inputs.check_task("answer")
        top, longest = whole("top", top, 1, 1000), whole("longest", longest, 1, self.context)
        unanswerable = checks.boolean("unanswerable", unanswerable)
        from pellucid.encoders.tasks import answer

        return answer(self, question, text, top=top, longest=longest, unanswerable=unanswerable, edits=edits)

    def encode(self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None) -> list[NDArray[np.float32]]:
        """Run tokens through an encoder (``encoders/tasks.py``). ``embed`` makes vectors of texts.

        Raises:
            InvalidRequest: ``texts`` is not a list of ``EncoderInput``.
        """
        remedy = "llm.embed(texts) makes vectors, llm.tokenizer.encode(text) ids"
        texts = list(checks.items("texts", texts, f"EncoderInput: {remedy}"))
        for at, one in enumerate(texts):
            if not isinstance(one, EncoderInput):
                raise InvalidRequest(f"texts[{at}]={brief(one)}: must be an EncoderInput: {remedy}")
        from pellucid.engine.tasks.encoding import encode

        return encode(self.engine, texts, self.tracing.tracer(edits), self.scheduling)

    @property
    def decider(self) -> Decider:
        """Makes the prompts of decisions and reads their scores (``decide/decider.py``). Raises: as ``decide``."""
        return self._decider()

    def decide(
        self, state: Any, questions: Mapping[str, Any], *, explain: bool = False, edits: Sequence[Edit] | None = None
    ) -> Decisions:
        """Answer typed questions about a state, each with a probability for each option, without generating text.

            llm.decide("I was charged twice!", {
                "team": {"type": "choice", "instructions": "Which team?", "criteria": {"billing": None, "sales": None}},
                "angry": {"type": "noul", "instructions": "Is the customer angry?"},
            })["team"].value

        The questions are in the form of System One's API (``decide/questions.py``), and share one reading of the state;
        an encoder reads the state with each question. The answer to a question has the same bits with any other
        questions and requests; models that read all questions together ("nimble", "clef") have it with any requests.

        A decision model's file has the template of its prompts, and temperatures that calibrate the probabilities. An
        instruct model answers by the letters of the options; its ``temperature`` is None, its probabilities are not
        calibrated.

        Args:
            state: a text, or an object or a list, which the model reads as JSON.
            questions: questions by their ids.
            explain: also compute the words that made the answer likely (``Decision.explanation``).
            edits: changes of values (``trace/edits.py``).

        Raises:
            InvalidRequest: the state or a question is wrong, or has more options than the model has labels; or
                ``explain`` for a model whose scores or residual stream are not a sum, or for a prompt too long to be
                traced.
            UnsupportedTask: the model is no decision model, and has no chat template.
            UnsupportedModel: the file's type of decision model is not implemented.
            ContextOverflow: a prompt does not fit into the context.
            TemplateError: the template fails.
        """
        from pellucid.decide.questions import questions_of, state_of

        asked, decider = questions_of(questions), self.decider
        read = state_of(state)
        if explain:
            decider.check_explains()
        prompts = decider.prompts(read, asked)
        decisions = decider.decisions(asked, prompts, self.label_scores(prompts, edits))
        if not explain:
            return decisions
        from pellucid.decide.decider import explained

        return explained(self, decider, decisions, prompts, read, edits)

    def label_scores(
        self, prompts: Sequence[DecisionPrompt], edits: Sequence[Edit] | None = None
    ) -> list[list[NDArray[np.float32]]]:
        """The scores of the options of each reading of prompts from ``decider``, by their labels or by themselves."""
        if self.decider.options is not None:
            return self.decider.options.scores(self, prompts, edits)
        from pellucid.engine.tasks.scoring import label_scores

        positions = [[one.position for one in prompt.readings] for prompt in prompts]
        found = dict[tuple[int, int], NDArray[np.float32]]()
        for number, position, logits in self.rows_at([one.ids for one in prompts], positions, edits):
            reading = next(one for one in prompts[number].readings if one.position == position)
            found[number, position] = label_scores(logits, [label.tokens for label in reading.labels])
        return [[found[number, position] for position in own] for number, own in enumerate(positions)]

    def rows_at(
        self, prompts: Sequence[list[int]], positions: Sequence[Sequence[int]], edits: Sequence[Edit] | None = None
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Outputs at some positions of prompts that share their first tokens (``engine/tasks/scoring.py``)."""
        watching = self.tracing.tracer(edits)
        from pellucid.engine.tasks.scoring import prompt_rows

        return prompt_rows(self.engine, prompts, positions, self.context, watching, self.scheduling)

    def project(self, vectors: NDArray[np.float32], rows: int = 1) -> NDArray[np.float32]:
        """Outputs of vectors (n, D) that replace the residual stream after the last block (``ModelRunner.project``)."""
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        size = max(PROJECTED_ROWS // max(rows, 1), 1) * max(rows, 1)
        parts = [vectors[first : first + size] for first in range(0, len(vectors), size)] or [vectors]
        turns = (self.runner.project(part, rows) for part in parts)  # between the steps of requests
        logits = list(self.engine.run(ReadingTask(turns), self.scheduling, max_unread=1))
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def edited_outputs(
        self, prompt: PromptInput, copies: Sequence[Sequence[Edit]], edits: Sequence[Edit] = ()
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the logits (V,) after the last token of each edited copy of a prompt, with the copy's number.

        The prompt itself has the ``edits`` and the number -1. Copies run in batches, in any order, and share the blocks
        and tokens before their first edit. ``pellucid.trace.sweep`` measures such copies.

        Raises:
            InvalidRequest: an edit does not fit, or the model generates no text or has an encoder.
        """
        if not self.spec.generates or self.spec.encoder or not self.spec.head:
            raise InvalidRequest("edited copies need a language model without an encoder: run requests with edits")
        ids = self.inputs.prompt(prompt)
        made, base = self.tracing.edited(ids, copies, edits)
        from pellucid.engine.edited_copies import EditedCopies

        task = ReadingTask(EditedCopies(self.runner, ids, made, base).run())
        for outputs in self.engine.run(task, self.scheduling, max_unread=2):
            yield from outputs

    def taped(
        self, ids: Sequence[int], versions: Versions, needs: TapeNeeds, edits: Sequence[Edit] = ()
    ) -> tuple[Tape, NDArray[np.float32]]:
        """Run a prompt, and record the values that a backward pass reads. Returns them, and the last logits (V,).

        Raises:
            InvalidRequest: an edit does not fit.
        """
        from pellucid.engine.recorder import run_with_recorder
        from pellucid.trace.backward.reverse_walk import Tape

        _, base = self.tracing.edited(ids, [], edits)
        tape = Tape(versions, needs, len(ids), len(ids) - 1, base)
        task = ReadingTask(run_with_recorder(self.runner, ids, tape, len(ids) - 1))
        logits = np.concatenate(list(self.engine.run(task, self.scheduling, max_unread=2)))
        return tape, logits[-1]

    @cached_property
    def plan_versions(self) -> Versions:
        """The versions of the plan's buffers, which backward passes read (``trace/backward``)."""
        from pellucid.trace.backward.reverse_walk import Versions

        return Versions(self.plan.source or self.plan)

    @cached_property
    def float_weights(self) -> ModelWeights:
        """The weights as float32. They are kept in memory as gradients need them, up to a quarter of the machine's."""
        from pellucid.trace.traced_model import ModelWeights

        return ModelWeights(self.checkpoint, self.model, machine_bytes() // 4, self.runner.threads)

    def _watch(
        self, request: LocalRequest, names: Sequence[str], limit: int, notify: Callable[[], object]
    ) -> TraceStream:
        from pellucid.trace.frames import TraceStream

        stream = TraceStream(self.points, names, limit, notify)
        refuse_late(request, stream)
        request.attach(stream.recorders(len(request.outputs)), stream.source_recorder())
        stream.ended = partial(request.attach, [])
        return stream

    def trace(
        self,
        *points: str,
        edits: Sequence[Edit] = (),
        budget: int = BUDGET,
        on: Callable[[TraceFrame], object] | None = None,
    ) -> AbstractContextManager[Trace]:
        """Record values of all requests inside a ``with`` statement, in the same thread or asyncio task.

            with llm.trace("blocks.*.residual", "blocks.5.attention.pattern[heads=0,3]") as t:
                llm.generate("The capital of France is", max_new_tokens=8)
            t["blocks.5.attention.pattern"]  # (B, H, T, T')

        Arguments and errors are as in ``Tracing.trace``.
        """
        return self.tracing.trace(*points, edits=edits, budget=budget, on=on)

    def record(
        self,
        prompt: PromptInput,
        *points: str,
        edits: Sequence[Edit] = (),
        budget: int = BUDGET,
        **options: Unpack[TextOptions],
    ) -> RecordedRun:
        """Generate, and record the run. The recorded run can be saved, opened without the model, and resumed.

        Takes the points and edits of ``trace``, and the options of ``generate`` that a file can hold.

        Raises: as ``generate`` and ``trace``.
        """
        from pellucid.run_recording import record

        return record(self, prompt, points, edits, budget, dict(options))

    def record_dataset(
        self,
        corpus: str | Path | Iterable[str],
        *points: str,
        out: str | Path,
        field: str | None = None,
        dtype: str = "float32",
        format: str = "safetensors",
        truncate: bool = False,
        shard_bytes: int | None = None,
        part: str | None = None,
        progress: DatasetProgress | None = None,
    ) -> ActivationDataset | None:
        """Run all texts of a corpus, and write the values of points to a folder: a row for each token.

            data = llm.record_dataset("corpus.jsonl", "blocks.*.residual", out="activations", dtype="float16")
            data["blocks.5.residual"][:1000]  # (1000, D)

        An interrupted recording continues when it is called again, and the files have the same bytes. Memory does not
        grow with the corpus.

        Args:
            corpus: a file (.txt with a text in each line, .jsonl, .csv, .parquet), a folder of .txt and .md files, or a
                list of texts.
            points: names of points, or selected parts of points with the same tokens, as for ``trace``.
            out: the folder.
            field: the field or column of the texts in the file (None: "text").
            dtype: the type of the stored values: "float32", "float16" or "bfloat16".
            format: "safetensors", or "parquet" (needs pyarrow).
            truncate: shorten texts that are longer than the context, instead of raising ContextOverflow.
            shard_bytes: the maximum size of a file, if no text is larger (None: 256 MB).
            part: "2/8" computes every eighth shard, from the second on. Other processes or machines compute the other
                parts. The call that finds all shards in the folder writes the index.
            progress: receives the progress.

        Returns: the dataset; None while shards of other parts are missing.

        Raises:
            InvalidRequest: a point has no value of one size for each token, an option is out of range, the folder has
                another dataset, the disk is too small, or the current trace has edits.
            ContextOverflow: a text is longer than the context and ``truncate`` is off.
        """
        from pellucid.trace.dataset.activation_dataset import ActivationDataset, record_dataset
        from pellucid.trace.dataset.index import DatasetOptions, NoProgress
        from pellucid.util.text_file import corpus_of

        if self.tracing.has_edits:
            raise InvalidRequest("a dataset takes no edits: record it outside of the trace with edits")
        options = DatasetOptions.of(dtype, format, truncate, shard_bytes, part)
        made = record_dataset(self, corpus_of(corpus, field), points, Path(out), options, progress or NoProgress())
        return None if made.index is None else ActivationDataset(Path(out), made.index)

    def resume(
        self,
        run: RecordedRun,
        step: int,
        *points: str,
        token: int | str | None = None,
        edits: Sequence[Edit] = (),
        budget: int = BUDGET,
        **changes: Unpack[TextOptions],
    ) -> RecordedRun:
        """Continue a recorded run after its first ``step`` tokens, with changed options (``tracing.resume``)."""
        from pellucid.run_recording import resume

        return resume(self, run, step, token, points, edits, budget, dict(changes))

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all requests, stop the threads and close the file. The model cannot be used afterwards."""
        self.engine.close()
        if self.draft:
            self.draft.close()
        if "float_weights" in self.__dict__:
            self.float_weights.close()
        self.runner.close()
        self.checkpoint.close()


def _points(runner: ModelRunner) -> dict[str, Point]:
    from pellucid.trace.output_points import all_points

    return all_points(runner.plan, generates=runner.spec.generates)


def _identifier(checkpoint: Checkpoint, tokenizer: Tokenizer, runner: ModelRunner, how: LoadOptions) -> ModelIdentifier:
    from pellucid.receipts.issuer import ModelIdentifier

    context, options = runner.limits.context, (how.precise, how.kv_cache, how.activations)
    return ModelIdentifier(checkpoint, tokenizer, runner.plan, context, *options)


def _decider(checkpoint: Checkpoint, inputs: Inputs) -> Decider:
    from pellucid.decide.decider import Decider

    return Decider(checkpoint, inputs)
