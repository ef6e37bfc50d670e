"""Files of requests in OpenAI's batch format: an input line is a request, an output line is its answer.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ..., "messages": [...]}}
    {"id": "batch_req_…", "custom_id": "a", "response": {"status_code": 200, "request_id": "1", "body": {...}},
     "error": null}

Requests run concurrently. Answers are written in the order of the requests, and each answer is on disk as soon as its
request has ended (``serve/batch_output.py``). A killed batch therefore resumes with the requests that have no answer.
The id of an answer has hashes of its request, the model and the options (``serve/batch_output.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pellucid.base_llm import BaseLLM
from pellucid.engine.request import Request, run_together
from pellucid.errors import InvalidRequest, PellucidError, brief, reason
from pellucid.serve import batch_output
from pellucid.serve.api import error_details, status_of
from pellucid.serve.apis.cohere import RANKING, ranked
from pellucid.serve.apis.openai_chat import CHAT, ChatRequest
from pellucid.serve.apis.openai_completions import COMPLETION, EMBEDDING, CompletionRequest, embeddings
from pellucid.serve.apis.vllm import SCORE, scored
from pellucid.serve.openai_parts import error_body
from pellucid.serve.request_body import BodyType, RequestBody
from pellucid.serve.routes import Generating
from pellucid.util.interpreter import run_apart
from pellucid.util.paths import refuse_same

LONGEST_ID = 512


@dataclass(frozen=True)
class EncoderRequest:
    """A request to an encoder, whose response ``run`` computes from the arguments of `model_route`."""

    run: Callable[[RequestBody[Any], BaseLLM[Any], str, str], Any]
    body: RequestBody[Any]
    llm: BaseLLM[Any]
    groups: Sequence[Request] = ()  # nothing is generated

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        return self.run(self.body, self.llm, name, number)  # type: ignore[no-any-return]


ROUTES: Mapping[str, tuple[BodyType[Any], Callable[[RequestBody[Any], BaseLLM[Any]], Generating]]] = {
    "/v1/chat/completions": (CHAT, ChatRequest.of),
    "/v1/completions": (COMPLETION, CompletionRequest.of),
    "/v1/embeddings": (EMBEDDING, partial(EncoderRequest, embeddings)),
    "/v1/rerank": (RANKING, partial(EncoderRequest, ranked)),
    "/v1/score": (SCORE, partial(EncoderRequest, scored)),
}


@dataclass(frozen=True)
class RequestLine:
    """A request of a batch. ``number`` is its line number, from 1."""

    number: int
    custom_id: str
    url: str
    body: Any

    @property
    def model(self) -> str | None:
        """The name of a model in the request; None if the request has none."""
        name = self.body.get("model") if isinstance(self.body, dict) else None
        return name if isinstance(name, str) and name else None


def read_lines(path: Path) -> Iterator[RequestLine]:
    """Yield the requests of a file. Empty lines are skipped.

    Raises:
        InvalidRequest: a line is not a request, or its custom_id is a duplicate; the message names the line.
    """
    seen = set[str]()
    for number, _, raw in batch_output.lines_of(path):
        line = _line(path, number, raw)
        if line.custom_id in seen:
            raise InvalidRequest(
                f"{batch_output.title(path)}, line {number:,}: custom_id {brief(line.custom_id)} is a duplicate: "
                "give each request another custom_id"
            )
        seen.add(line.custom_id)
        yield line


def _line(path: Path, number: int, raw: bytes) -> RequestLine:
    where = f"{batch_output.title(path)}, line {number:,}"
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}: is not JSON: {reason(error)}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{where}: is {brief(parsed)}; it must be an object")
    custom, url = parsed.get("custom_id"), parsed.get("url")
    if not isinstance(custom, str) or not 0 < len(custom) <= LONGEST_ID:
        raise InvalidRequest(
            f"{where}: custom_id is {brief(custom)}; it must be a text of 1 to {LONGEST_ID} characters"
        )
    if parsed.get("method", "POST") != "POST" or not isinstance(url, str) or url not in ROUTES:
        raise InvalidRequest(
            f"{where}: is {brief(parsed.get('method'))} {brief(url)}; it must be POST to {', '.join(ROUTES)}"
        )
    return RequestLine(number, custom, url, parsed.get("body"))


class Batch:
    """Runs the requests of ``source`` on a model and writes the answers to ``target`` in the same order.

    ``name`` replaces the model names in the requests. If ``name`` is None, each answer repeats the name in its request.
    ``together`` is the number of requests that run at a time. The path "-" is standard input or output.

    A context manager: after an error it removes the output if this run created it and it is empty.

    Raises:
        InvalidRequest: a file cannot be read or written, is not a batch file, or the output is the file of requests.
    """

    def __init__(self, source: Path, target: Path, name: str | None = None, together: int = 64) -> None:
        self._name, self._together = name, together
        if str(target) != batch_output.STANDARD:
            for output in (target, target.with_name(target.name + batch_output.EARLY)):
                refuse_same("OUT", output, [source])
        self._requests = list(read_lines(source))
        self._hashes = {line.custom_id: batch_output.hash_of([line.url, line.body]) for line in self._requests}
        self._output = batch_output.BatchOutput(target, self._hashes)
        missing = self._output.missing
        self.lines = [line for line in self._requests if line.custom_id in missing]
        self.total, self.answered = len(self._requests), len(self._requests) - len(self.lines)
        self._bound: tuple[str, str] | None = None

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._output.remove_if_empty()

    @property
    def failed(self) -> int:
        """Number of answers with an error, including answers of earlier runs."""
        return self._output.failed

    @property
    def model(self) -> str:
        """The model that the requests name.

        Raises:
            InvalidRequest: no request names a model, or the requests name several models.
        """
        names = list(dict.fromkeys(line.model for line in self._requests if line.model))
        if not names:
            raise InvalidRequest("no request of the batch names a model: name one with --model")
        if len(names) > 1:
            raise InvalidRequest(
                f"the requests name {len(names):,} models ({brief(names[0])}, {brief(names[1])}, …): split the file, "
                "or name one model for all requests with --model"
            )
        return names[0]

    def bind(self, model: str, options: str) -> None:
        """Bind the answers to a model and to the options of its loading, by their hashes. Call it before ``run``.

        Raises:
            InvalidRequest: the output has answers of another model, or of other options.
        """
        self._bound = model[: batch_output.DIGITS], options[: batch_output.DIGITS]
        self._output.bind(*self._bound)

    def run(self, llm: BaseLLM[Any], report: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Run the requests that have no answer. Calls ``report(answered, total)`` after each write."""
        assert self._bound, "bind the batch to a model first"
        # Closing the model cancels running requests; the next run repeats them.
        run_apart(lambda check: self._run(llm, report, check), lambda: llm.close())

    def _run(self, llm: BaseLLM[Any], report: Callable[[int, int], object], check: Callable[[], None]) -> None:
        with self._output.opened(), ThreadPoolExecutor(self._together, "pellucid-batch") as pool:
            running, waiting = set[Future[dict[str, Any]]](), iter(self.lines)
            try:
                while True:
                    for line in waiting:
                        running.add(pool.submit(self._answer, llm, line))
                        if len(running) >= 2 * self._together:
                            break
                    if not running:
                        return
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    check()  # the answers after Ctrl-C are errors of the closed model
                    self._write([future.result() for future in ended])
                    report(self.answered, self.total)
            except BaseException:
                for future in running:
                    future.cancel()
                llm.close()
                raise

    def _answer(self, llm: BaseLLM[Any], line: RequestLine) -> dict[str, Any]:
        assert self._bound
        number, (body_type, read) = str(line.number), ROUTES[line.url]
        try:
            body = body_type.decode(line.body)
            name = body.fields.model if self._name is None else self._name
            if not name:
                raise InvalidRequest("model is missing: the request must have it")
            for option in ("stream", "timings_per_token", "return_progress", "verbose"):
                if getattr(body.fields, option, False):
                    raise InvalidRequest(f"{option}=true: the answers of a batch are complete; leave it out")
            request = read(body, llm)
            run_together(request.groups)
            status, content = 200, request.answer(name, number)
        except PellucidError as error:
            status = status_of(error)
            content = error_body(status, str(error), error_details(error, body_type.schema))
        return {
            "id": str(batch_output.AnswerId(self._hashes[line.custom_id], *self._bound)),
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": number, "body": content},
            "error": None,
        }

    def _write(self, answers: Sequence[Mapping[str, Any]]) -> None:
        # ASCII only: some line readers also split at U+2028.
        self._output.write({one["custom_id"]: json.dumps(one).encode() + b"\n" for one in answers})
        self.answered += len(answers)
        self._output.failed += sum(map(batch_output.is_failed, answers))
