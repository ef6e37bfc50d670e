"""Worker processes that render templates leave nothing behind after interrupts, kills, forks or the parent's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.processes import environment, python
from support.systems import BOOT_OF_WINDOWS, posix
from support.workers import Workers, own_workers

from pellucid.errors import TemplateError
from pellucid.tokenize.chat import template
from pellucid.tokenize.chat.template import BOOT, MAX_WORKERS, RenderLimits, render, start_ahead
from pellucid.tokenize.chat.template_pipes import MeasuredMemory, WatchedPipes

pytestmark = pytest.mark.slow

SPIN = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SPIN_IN_C = "{{ 'x' | slice(10**10) | list }}"
CRASH = (
    "{% set n = namespace(x=[1]) %}{% for a in range(99999) %}{% set n.x = n.x | batch(2) %}{% endfor %}"
    "{{ n.x | list }}"
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def workers() -> Iterator[Workers]:
    """The workers of a test."""
    with own_workers() as made:
        yield made


@pytest.fixture(params=["polled pipes", "watched pipes, as on Windows"])
def any_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """The workers of a test, with each way to enforce a deadline."""
    watched = "Windows" in request.param
    if watched:
        monkeypatch.setattr(template, "BOOT", BOOT_OF_WINDOWS)
    with own_workers(WatchedPipes if watched else None) as made:
        yield made


def is_there(pid: int) -> bool:
    """True if a process exists, also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not after {seconds} s"
        time.sleep(0.01)


def start(code: str, **options: object) -> subprocess.Popen[str]:
    """Start a script that renders."""
    prelude = (
        "import os, signal, sys, time\n"
        "from pellucid.errors import TemplateError\n"
        "from pellucid.tokenize.chat import template\n"
        "from pellucid.tokenize.chat.template import RenderLimits, render\n"
        "started, pipes_of = [], template.pipes_of\n"
        "def recorded(process, check):\n    started.append(process)\n    return pipes_of(process, check)\n"
        "template.pipes_of = recorded\n"
        "def pid(): return next(one.pid for one in started if one.returncode is None)\n"
        f"SPIN, SPIN_IN_C = {SPIN!r}, {SPIN_IN_C!r}\n"
    )
    command = python(prelude + code)
    command[1:1] = ["-W", "error", "-X", "dev"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), **options
    )  # type: ignore[call-overload,no-any-return]


def finished(process: subprocess.Popen[str]) -> str:
    """The script's output; checks that it ends without warnings."""
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    return out


def test_a_worker_is_kept(any_workers: Workers) -> None:
    assert [render("{{ x }}", {"x": x}) for x in range(3)] == ["0", "1", "2"]
    assert len(any_workers.pids) == 1


def test_a_worker_may_be_started_ahead(workers: Workers) -> None:
    start_ahead()
    start_ahead()
    before = workers.pids
    assert len(before) == 1
    assert render("{{ 1 }}", {}) == "1"
    assert workers.pids == before


@linux
@pytest.mark.parametrize("source", [SPIN, SPIN_IN_C])
def test_a_worker_past_its_time_is_gone(source: str, any_workers: Workers) -> None:
    start_ahead()
    (pid,) = any_workers.pids
    with pytest.raises(TemplateError, match=r"it ran for more than 0.1 seconds$"):
        render(source, {}, RenderLimits(seconds=0.1))
    assert not is_there(pid)
    assert render("{{ 1 }}", {}) == "1"


def test_the_line_is_said_of_a_template_past_its_time(any_workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "GRACE_SECONDS", 5.0)  # for a busy machine
    assert render("{{ 1 }}", {}) == "1"
    with pytest.raises(TemplateError, match=r"^chat template, line 3: it ran for more than 0.2 seconds$"):
        render(f"\n\n{SPIN}", {}, RenderLimits(seconds=0.2))
    assert render("{{ 1 }}", {}) == "1"


def test_a_large_request_and_a_large_reply(any_workers: Workers) -> None:
    text = "x\U0001f600" * 1_500_000
    assert render("{{ x }}", {"x": text}) == text


@posix
def test_a_deadline_while_a_worker_does_not_read(any_workers: Workers) -> None:
    assert render("{{ 1 }}", {}) == "1"
    os.kill(any_workers.pids[0], signal.SIGSTOP)
    with pytest.raises(TemplateError, match=r"it ran for more than 0.3 seconds$"):
        render("{{ x }}", {"x": "x" * 5_000_000}, RenderLimits(seconds=0.3))


@posix
def test_memory_is_measured_where_the_system_does_not_limit_it(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    monkeypatch.setattr(template, "memory_of", MeasuredMemory)
    monkeypatch.setattr("pellucid.util.macos.process_bytes", resident)
    unlimited = "template_worker.resource.RLIMIT_AS = template_worker.resource.RLIMIT_CORE; template_worker.main()"
    monkeypatch.setattr(template, "BOOT", BOOT.replace("template_worker.main()", unlimited))
    assert render("{{ 1 }}", {}) == "1"
    with pytest.raises(TemplateError, match=r"it used more than 200 MB of memory$"):
        render("{% set n = namespace(x=[1] * 10**6) %}{% for i in range(9999) %}{% set n.x = n.x + n.x %}{% endfor %}",
               {}, RenderLimits(megabytes=200))  # fmt: skip
    assert render("{{ 1 }}", {}) == "1"
    (pid,) = workers.pids
    assert render("{{ x | length }}", {"x": "x" * 30_000_000}) == "30000000"
    monkeypatch.setattr("pellucid.tokenize.chat.template_pipes.RETIRED_BYTES", 10 << 20)
    assert render("{{ 1 }}", {}) == "1"
    assert workers.pids != [pid]  # replaced, because it was large


def test_a_crash_is_said(any_workers: Workers) -> None:
    with pytest.raises(
        TemplateError, match=r"its process crashed \(SIG\w+\); the template may be nested too deeply$|nested too"
    ):
        render(CRASH, {})
    assert render("{{ 1 }}", {}) == "1"


@posix
def test_killed_from_outside_between_renderings(any_workers: Workers) -> None:
    assert render("{{ 1 }}", {}) == "1"
    (worker,) = any_workers.running
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: worker.poll() is not None, 5)
    assert render("{{ 2 }}", {}) == "2"
    assert any_workers.pids != [worker.pid]


@posix
@pytest.mark.parametrize(
    ("kill", "problem"),
    [("SIGKILL", "its process was ended by SIGKILL: try again$"), ("SIGSTOP", "it ran for more than 1 seconds$")],
)
def test_killed_from_outside_while_it_renders(kill: str, problem: str, any_workers: Workers) -> None:
    assert render("{{ 1 }}", {}) == "1"
    timer = threading.Timer(0.3, os.kill, (any_workers.pids[0], getattr(signal, kill)))
    timer.start()
    with pytest.raises(TemplateError, match=problem):
        render(SPIN, {}, RenderLimits(seconds=1.0))
    timer.join()
    assert render("{{ 1 }}", {}) == "1"


def test_threads_share_a_few_workers(any_workers: Workers) -> None:
    def one(number: int) -> str:
        return render("{% for i in range(2000) %}{% endfor %}{{ x }}", {"x": number})

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(200))) == [str(number) for number in range(200)]
    assert 1 <= len(any_workers.pids) <= MAX_WORKERS


def test_a_hostile_template_does_not_hold_up_others(any_workers: Workers) -> None:
    with ThreadPoolExecutor(1) as pool:
        hostile = pool.submit(render, SPIN, {}, RenderLimits(seconds=2.0))
        assert [render("{{ 1 }}", {}) for _ in range(20)] == ["1"] * 20
        assert not hostile.done()
        assert isinstance(hostile.exception(), TemplateError)


@posix
@pytest.mark.parametrize("source", ["SPIN", "SPIN_IN_C"])
def test_control_c(source: str) -> None:
    script = start(
        "render('', {})\nold = pid()\nprint('ready', flush=True)\n"
        f"try: render({source}, {{}}, RenderLimits(seconds=120.0))\n"
        "except KeyboardInterrupt: pass\n"
        "print(render('{{ 1 }}', {}), pid() != old)",
        start_new_session=True,
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(script.pid, signal.SIGINT)  # as a terminal does
    assert finished(script) == "1 True\n"


@posix
def test_control_c_does_not_reach_an_idle_worker() -> None:
    script = start(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "render('', {})\nold = pid()\nprint('ready', flush=True)\ninput()\n"
        "print(render('{{ 1 }}', {}), pid() == old)",
        start_new_session=True,
        stdin=subprocess.PIPE,
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "ready\n"
    os.killpg(script.pid, signal.SIGINT)
    out, err = script.communicate("\n", timeout=30)
    assert (out, err) == ("1 True\n", "")


@linux
def test_nothing_is_left_at_the_end() -> None:
    script = start("template.start_ahead()\nprint(pid(), render('', {}))")
    assert not is_there(int(finished(script)))
    unused = start("template.start_ahead()\nprint(pid())")
    assert not is_there(int(finished(unused)))


@linux
@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        ("time.sleep(60)", 2),
        ("render(SPIN, {}, RenderLimits(seconds=1.0))", 8),
        ("render(SPIN_IN_C, {}, RenderLimits(seconds=1.0))", 8),
    ],
)
def test_a_worker_does_not_outlive_its_parent(code: str, seconds: float) -> None:
    script = start(f"render('', {{}})\nprint(pid(), flush=True)\n{code}")
    assert script.stdout is not None
    worker = int(script.stdout.readline())
    time.sleep(0.3)
    script.kill()
    script.communicate()
    wait_until(lambda: not is_there(worker) or state(worker) == "Z", seconds)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@linux
def test_a_fork_has_workers_of_its_own() -> None:
    script = start(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        "render('', {})\nold = pid()\n"
        "child = os.fork()\n"
        "text = render('{{ x }}', {'x': child == 0})\n"
        "if child == 0: print(text, pid() != old, flush=True); sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(text, pid() == old, render('{{ 1 }}', {}))"
    )
    assert finished(script) == "True True\nFalse True 1\n"


@linux
def test_a_fork_does_not_keep_its_parents_worker() -> None:
    script = start(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        "render('', {})\n"
        "if os.fork() == 0: time.sleep(3); os._exit(0)\n"
        "print(pid(), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert script.stdout is not None
    worker = int(script.stdout.readline())
    wait_until(lambda: not is_there(worker) or state(worker) == "Z", 2)
    script.communicate()


@posix
def test_without_standard_streams(tmp_path: Path) -> None:
    path = tmp_path / "out"
    script = start(
        "for descriptor in range(3): os.close(descriptor)\n"
        f"text = render('{{{{ x }}}}', {{'x': 1}})\n"
        f"open({str(path)!r}, 'w').write(text)\nos._exit(0)"
    )
    finished(script)
    assert path.read_text() == "1"


@linux
def test_a_worker_inherits_little(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with open(os.devnull, encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        assert render("{{ 1 }}", {}) == "1"
        (pid,) = workers.pids
        assert {os.path.basename(path) for path in os.listdir(f"/proc/{pid}/fd")} == {"0", "1", "2"}
    variables = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8")
    assert "TZ=Asia/Tokyo" in variables
    assert "SECRET" not in variables
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid


@linux
def test_limits_of_the_administrator_stay() -> None:
    script = start(
        "import resource\n"
        "for kind, most in ((resource.RLIMIT_AS, 300 << 20), (resource.RLIMIT_CPU, 30)):\n"
        "    resource.setrlimit(kind, (most, most))\n"
        "print(render('{{ 1 }}', {}))\n"
        "try: render('{{ [1] * 10**8 }}', {}, RenderLimits(megabytes=10_000))\n"
        "except TemplateError as error: print('memory' in str(error))"
    )
    assert finished(script) == "1\nTrue\n"


@posix
@pytest.mark.parametrize(
    ("executable", "problem"),
    [
        (None, "sys.executable names none"),
        ("", "sys.executable names none"),
        ("/nowhere/python", "/nowhere/python, cannot be started: No such file"),
        ("/dev/null", "cannot be started: Permission denied"),
        ("/bin/true", "/bin/true, cannot be started: it does not run as Python"),
        ("/bin/echo", "/bin/echo, cannot be started: it does not run as Python"),
    ],
)
def test_no_python_to_run(
    executable: str | None, problem: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(TemplateError, match=problem) as caught:
        render("", {})
    assert "\n" not in str(caught.value)
    assert not workers.running


def test_a_system_that_starts_no_process(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(TemplateError, match=r"cannot be started: Too many open files$"):
        render("", {})


def test_jinja_that_does_not_work(workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jinja2").mkdir()
    (tmp_path / "jinja2" / "__init__.py").write_text("raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    with pytest.raises(TemplateError, match="cannot be started: RuntimeError: broken"):
        render("", {})


def test_a_worker_that_says_nonsense(any_workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "BOOT", "import sys; sys.stdout.write('\\0\\0\\0\\2[]'); sys.stdout.flush()")
    with pytest.raises(TemplateError, match="cannot be started"):
        render("", {})
