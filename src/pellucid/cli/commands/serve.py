"""pellucid serve [MODEL]...: an HTTP server with the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.load_options import LoadOptions
from pellucid.cli.replicas import Cluster, MaxReplicas, ReplicaCount, ReplicaCpus, Replicas, StageCount

if TYPE_CHECKING:
    from pellucid.serve.guard import AccessRules
    from pellucid.weights.sources.source import DownloadProgress


Texts: TypeAlias = list[str] | None


def _repeated(help: str, more: str = "") -> Any:
    """An option that may be given several times."""
    return typer.Option(help=f"{help}; may be repeated. {more}".strip(), show_default=False)


Pulls = Annotated[
    bool,
    typer.Option(
        "--pull", help="Download models that are not on this machine, also with Ollama's /api/pull."
    ),
]
AnyModel = Annotated[
    bool,
    typer.Option(
        "--any-model", help="The first model answers requests for models of other names, as with llama.cpp."
    ),
]
TemplateFile = Annotated[
    str | None,
    typer.Option(
        help="A file with a chat template (Jinja) for the first model, instead of its own.",
        metavar="FILE",
        show_default=False,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help="A smaller model that proposes tokens for the first one; texts stay the same.", metavar="MODEL"
    ),
]


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="The models, by the names that requests use; as for run. By default, all on this machine.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[Any, common.count("The port to listen at.")] = 8000,
    key: Annotated[Texts, _repeated("A key that requests must have", "Also PELLUCID_KEY.")] = None,
    admin_key: Annotated[
        Texts, _repeated("A key that may look at all requests that run", "Also PELLUCID_ADMIN_KEY.")
    ] = None,
    allow_host: Annotated[Texts, _repeated("A name of this server, as in its address")] = None,
    allow_origin: Annotated[Texts, _repeated("A web page's origin that may ask")] = None,
    memory: Annotated[Any, common.number("Gigabytes that the models' files may take together.")] = None,
    pull: Pulls = False,
    any_model: AnyModel = False,
    chat_template: TemplateFile = None,
    queue: Annotated[Any, common.count("How many requests may wait for each model.")] = 256,
    grace: Annotated[Any, common.number("Seconds that running requests have to end after SIGTERM.")] = 30.0,
    *,
    loading: LoadOptions,
    draft: Draft = None,
    cluster: Cluster = None,
    replicas: ReplicaCount = None,
    max_replicas: MaxReplicas = None,
    replica_cpus: ReplicaCpus = None,
    stages: StageCount = None,
) -> None:
    """Serve models over HTTP, with the APIs of OpenAI, Anthropic and Ollama.

    The first named model is loaded now, others when they are asked for.
    """
    from pellucid.serve.run import Settings, serve
    from pellucid.util.checks import real, whole

    whole("port", port, 0, 65535)
    limit = usual_memory() if memory is None else real("memory", memory, 0.0, 1e6, above=True) * 1e9
    rules, waiting = (
        access_rules(host, key, admin_key, allow_host, allow_origin),
        whole("queue", queue, 1, 1 << 20),
    )

    names = list(dict.fromkeys(models or all_models(pull)))
    of_first = {"draft": draft, "chat_template": chat_template and template_of(chat_template)}

    def own(name: str) -> dict[str, Any]:
        return {**(of_first if name == names[0] else {}), "cap_context": True, "pulls": pull}

    def load(name: str) -> Any:
        llm = loading.load(name, **own(name), before=lambda inputs: None)
        llm.engine.limit_queue(waiting)
        return llm

    settings = Settings(host, port, real("grace", grace, 0.0, 3600.0), bool(models), any_model)
    if asked := Replicas.of(cluster, replicas, max_replicas, replica_cpus, stages):
        asked.serve({name: {**asdict(loading), **own(name)} for name in names}, waiting, rules, settings)
    else:
        serve(names, load, int(limit), rules, settings, pull=pulled if pull else None)


def pulled(name: str, progress: DownloadProgress) -> str:
    """Download a model of the catalogue for a client; its name. A client names no path and no other source.

    Raises:
        ModelNotFound: the catalogue has no such model.
        SourceError: it cannot be downloaded.
    """
    from pellucid.weights.catalogue import find, not_found
    from pellucid.weights.store import resolve

    if (model := find(name)) is None:
        raise not_found(name)
    resolve(model.name, progress=progress)
    return model.name


def template_of(file: str) -> str:
    """A file's chat template.

    Raises:
        InvalidRequest: it cannot be read, or is too long.
    """
    from pellucid.errors import InvalidRequest
    from pellucid.errors.messages import brief, reason
    from pellucid.tokenize.chat.template import SOURCE_CHARACTERS

    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read(SOURCE_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"chat_template={brief(file)}: cannot be read: {reason(error)}") from error
    if len(text) > SOURCE_CHARACTERS:
        raise InvalidRequest(
            f"chat_template={brief(file)}: has more than {SOURCE_CHARACTERS:,} characters: name a template"
        )
    return text


def usual_memory() -> float:
    """Bytes that the models' files may take together."""
    from pellucid.runtime.memory import machine_bytes

    return 0.75 * machine_bytes()


def access_rules(
    host: str,
    keys: list[str] | None,
    admins: list[str] | None,
    hosts: list[str] | None,
    origins: list[str] | None,
) -> AccessRules:
    """Who may ask; keys are in the environment too."""
    import os

    from pellucid.serve.guard import LOOPBACK, AccessRules

    own = [*(keys or []), *filter(None, [os.environ.get("PELLUCID_KEY")])]
    all_seeing = [*(admins or []), *filter(None, [os.environ.get("PELLUCID_ADMIN_KEY")])]
    allowed = [*LOOPBACK, *(hosts or [])] if host in LOOPBACK else list(hosts or [])
    return AccessRules(own, allowed, origins or [], all_seeing)


def all_models(pull: bool) -> list[str]:
    """The names of the models that are here; with ``pull``, of those of the catalogue too."""
    from pellucid.errors import InvalidRequest
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    found = [model.name for model in installed() if model.complete] + (list(catalogue()) if pull else [])
    if not found:
        raise InvalidRequest("there is no model on this machine: name one, or give --pull")
    return found


COMMAND = Command("serve", command)
