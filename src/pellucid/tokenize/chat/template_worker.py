"""The program of the worker process that renders chat templates. ``template.py`` starts and kills it.

The worker reads requests from standard input and writes one reply per request to standard output. Requests and replies
are frames. A frame is the length in four big-endian bytes, followed by JSON in UTF-8 (unpaired surrogates are allowed).

    request   {"source": str, "variables": {str: ...}, "seconds": float, "megabytes": int, "characters": int}
    reply     {"text": str} or {"error": str, "line": int | None}, and "last": bool, True if the worker exits next

The first frame is {"ready": True}, or {"error": str} if Jinja cannot be imported. The worker exits at the end of its
input. It imports nothing of Pellucid, so that it starts fast and uses little memory.

A template runs in Jinja's immutable sandbox, in the environment that ``transformers`` 5.24 provides
(``utils/chat_template_utils.py``): ``raise_exception``, ``strftime_now``, ``tojson``, loop controls, and the
``{% generation %}`` tag, which marks the assistant's text and prints its contents.
"""

from __future__ import annotations

import _thread
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from jinja2 import Environment, Template

NAME = "<chat template>"
MAX_ERROR_CHARACTERS = 1000
# A worker with more address space exits, so that the next rendering can use most of its limit.
RETIRED_MEGABYTES = 128


class OutOfTime(BaseException):
    """The timer expired. It is not an ``Exception``, because Jinja would catch it."""


class TooLong(Exception):
    """The text has more characters than allowed."""


def main() -> None:
    """Answer requests until the input ends."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    limits = Limits()
    try:
        environment()
    except Exception as error:
        write(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    limits.prepare()
    write(replies, {"ready": True})
    while (frame := read(requests)) is not None:
        reply = answer(frame, limits)
        write(replies, reply)
        if reply["last"]:
            break
    os._exit(0)  # freeing a template's objects may take long


def read(stream: BinaryIO) -> bytes | None:
    size = stream.read(4)
    return stream.read(int.from_bytes(size, "big")) if len(size) == 4 else None


def write(stream: BinaryIO, reply: Mapping[str, Any]) -> None:
    """Write a frame."""
    frame = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(len(frame).to_bytes(4, "big"))
    stream.write(frame)
    stream.flush()


def answer(frame: bytes, limits: Limits) -> dict[str, Any]:
    """The reply to a request."""
    request: dict[str, Any] = {}
    try:
        request = json.loads(frame.decode("utf-8", "surrogatepass"))
        try:
            limits.start(request["seconds"], request["megabytes"])
            text = render(request["source"], request["variables"], request["characters"])
        finally:
            limits.stop()
        return {"text": text, "last": _is_large()}
    except TooLong:
        return {"error": f"it wrote more than {request['characters']:,} characters", "line": None, "last": True}
    except OutOfTime as error:
        return _failed(error, f"it ran for more than {request['seconds']:g} seconds", last=True)
    except MemoryError as error:
        if error.args:  # Python's parser raises it with a message when its own stack overflows
            return _failed(error, "it is nested too deeply", last=True)
        return _failed(error, f"it used more than {request['megabytes']:,} MB of memory", last=True)
    except Exception as error:
        return _failed(error, _description(error), last=_is_large())


def render(source: str, variables: Mapping[str, Any], characters: int) -> str:
    """Render a template. Raises the template's errors and :class:`TooLong`."""
    random.seed(0)  # equal requests give equal text, even with the filter ``random``
    chunks, length = list[str](), 0
    for chunk in compiled(source).generate(variables):
        chunks.append(chunk)
        length += len(chunk)
        if length > characters:
            raise TooLong
    return "".join(chunks)


@lru_cache(maxsize=16)
def compiled(source: str) -> Template:
    """The template compiled to Python, cached."""
    sandbox = environment()
    code = sandbox.compile(source, NAME, NAME)
    return sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))


@cache
def environment() -> Environment:
    """The sandbox for templates, with the functions that templates can call."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateRuntimeError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.runtime import Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

        def _contents(self, caller: Macro) -> str:
            return caller()

    class TemplateDict:
        """``dict`` without the attributes of the class."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class TemplateNamespace(Namespace):
        """``namespace`` without names that begin with ``_``, which may have a meaning in Python."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            names = dict(*rest, **kwargs)
            for name in names:
                TemplateNamespace._check(name)
            Namespace.__init__(self, names)

        def __setitem__(self, name: str, value: Any) -> None:
            TemplateNamespace._check(name)
            super().__setitem__(name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a namespace cannot have {name!r}: names in it do not start with _")

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateRuntimeError(str(message))

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag], cache_size=0
    )
    sandbox.filters["tojson"] = tojson
    sandbox.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=TemplateDict(), namespace=TemplateNamespace
    )
    return sandbox


def _ring(*_: Any) -> NoReturn:
    raise OutOfTime


class ThreadLimits:
    """The limit on time, by a thread that interrupts the main thread: Windows has no timer signals.

    It interrupts Python code, and the traceback has the template's line. It does not interrupt a long call in C: then
    the parent kills the worker. The parent also limits the memory, and the worker ends when the parent ends.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadline: float | None = None

    def prepare(self) -> None:
        """Prepare for renderings. Called in the main thread."""
        signal.signal(signal.SIGINT, _ring)
        threading.Thread(target=self._run, daemon=True).start()

    def start(self, seconds: float, megabytes: int) -> None:
        """Begin to limit a rendering: `OutOfTime` is raised after ``seconds``."""
        self._set(time.monotonic() + seconds)

    def stop(self) -> None:
        """End the limits."""
        self._set(None)

    def _set(self, deadline: float | None) -> None:
        with self._changed:
            self._deadline = deadline
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while True:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                else:
                    self._deadline = None
                    _thread.interrupt_main()  # runs the handler of SIGINT in the main thread


if sys.platform == "win32":
    Limits = ThreadLimits
else:

    class SignalLimits:
        """The limits on time and memory, by the system.

        The timer interrupts Python code, and the traceback has the template's line. It does not interrupt a long call
        in C. In this case the parent kills the worker or, if the parent has ended, the limit on CPU time ends the
        worker.
        """

        def prepare(self) -> None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file if a template crashes the process
            signal.signal(signal.SIGALRM, _ring)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGXCPU})
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)

        def start(self, seconds: float, megabytes: int) -> None:
            if sys.platform == "linux":  # macOS has this limit but does not enforce it: the parent does
                self._set_limit(resource.RLIMIT_AS, megabytes << 20)
            used = resource.getrusage(resource.RUSAGE_SELF)
            self._set_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)
            signal.setitimer(signal.ITIMER_REAL, seconds)

        def stop(self) -> None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._set_limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)  # the reply may need memory

        def _set_limit(self, kind: int, value: int) -> None:
            most = resource.getrlimit(kind)[1]
            if most != resource.RLIM_INFINITY:
                value = most if value == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, most))

    Limits = SignalLimits


def _is_large() -> bool:
    """True if the process uses too much address space for the next rendering. On other systems the parent knows."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize() > RETIRED_MEGABYTES << 20
    return False


def _description(error: Exception) -> str:
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, RecursionError) or (
        isinstance(error, SyntaxError) and ("nested" in what or "indentation" in what)
    ):
        return "it is nested too deeply"
    return f"{type(error).__name__}: {what}" if type(error).__module__ == "builtins" else what


def _failed(error: BaseException, what: str, last: bool) -> dict[str, Any]:
    """An error reply, with the template's line if it is known."""
    # Jinja's errors have the template's line number; a SyntaxError has another line number.
    line = None if isinstance(error, SyntaxError) else getattr(error, "lineno", None)
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == NAME:
            template = at.tb_frame.f_globals.get("__jinja_template__")
            line = at.tb_lineno if template is None else template.get_corresponding_lineno(at.tb_lineno)
        at = at.tb_next
    return {"error": what[:MAX_ERROR_CHARACTERS], "line": line, "last": last}
