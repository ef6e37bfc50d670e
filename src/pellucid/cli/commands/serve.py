"""pellucid serve [MODEL]...: an HTTP server with the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.load_options import LoadOptions
from pellucid.cli.replicas import Cluster, MaxReplicas, ReplicaCount, ReplicaCpus, Replicas, StageCount
from pellucid.cli.serving_options import ServingOptions, Texts, repeated

if TYPE_CHECKING:
    from pellucid.weights.sources.source import DownloadProgress

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
    alias: Annotated[
        Texts,
        repeated("NAME=FILE: the name of a model in requests", "By default the file's, without its folder."),
    ] = None,
    memory: Annotated[Any, common.number("Gigabytes that the models' files may take together.")] = None,
    cache_memory: Annotated[
        Any,
        common.number(
            "Gigabytes of each model's prefix cache: keys and values of ended requests. By default as much as the "
            "weights, 0.5 at least, and a sixteenth of the memory at most."
        ),
    ] = None,
    pull: Pulls = False,
    any_model: AnyModel = False,
    chat_template: TemplateFile = None,
    queue: Annotated[Any, common.count("How many requests may wait for each model.")] = 256,
    *,
    serving: ServingOptions,
    loading: LoadOptions,
    draft: Draft = None,
    cluster: Cluster = None,
    replicas: ReplicaCount = None,
    max_replicas: MaxReplicas = None,
    replica_cpus: ReplicaCpus = None,
    stages: StageCount = None,
) -> None:
    """Serve models over HTTP, with the APIs of OpenAI, Anthropic and Ollama.

    The first named model is loaded at the start, other models at their first request.
    """
    from pellucid.serve.model_names import served_names
    from pellucid.serve.server import serve
    from pellucid.util.checks import real, whole

    settings, rules = serving.settings(first=bool(models or alias), any_model=any_model), serving.rules()
    limit = usual_memory() if memory is None else real("memory", memory, 0.0, 1e6, above=True) * 1e9
    waiting = whole("queue", queue, 1, 1 << 20)
    sources = served_names(models or ([] if alias else all_models(pull)), alias or [])
    names = list(sources)
    of_first = {"draft": draft, "chat_template": chat_template and template_of(chat_template)}

    def own(name: str) -> dict[str, Any]:
        first = of_first if name == names[0] else {}
        return {**first, "cache_memory": cache_memory, "cap_context": True, "pulls": pull}

    def load(name: str) -> Any:
        llm = loading.load(sources.get(name, name), **own(name), before=lambda inputs: None)
        llm.engine.limit_queue(waiting)
        return llm

    if asked := Replicas.of(cluster, replicas, max_replicas, replica_cpus, stages):
        loads = {name: (sources[name], {**asdict(loading), **own(name)}) for name in names}
        asked.serve(loads, waiting, rules, settings)
    else:
        serve(names, load, int(limit), rules, settings, pull=pulled if pull else None)


def pulled(name: str, progress: DownloadProgress) -> str:
    """Download a model of the catalogue for a client, and return its name. Clients cannot use paths or other sources.

    Raises:
        ModelNotFound: the model is not in the catalogue.
        SourceError: the model cannot be downloaded.
    """
    from pellucid.weights.catalogue import find, not_found
    from pellucid.weights.store import resolve

    if (model := find(name)) is None:
        raise not_found(name)
    resolve(model.name, progress=progress)
    return model.name


def template_of(file: str) -> str:
    """Read a chat template from a file.

    Raises:
        InvalidRequest: the file cannot be read, or is too long.
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
    """Default limit of the models' files together, in bytes."""
    from pellucid.runtime.processors import machine_bytes

    return 0.75 * machine_bytes()


def all_models(pull: bool) -> list[str]:
    """Names of the models on this machine; with ``pull``, also of the catalogue's models."""
    from pellucid.errors import InvalidRequest
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    found = [model.name for model in installed() if model.complete] + (list(catalogue()) if pull else [])
    if not found:
        raise InvalidRequest("there is no model on this machine: name one, or give --pull")
    return found


COMMAND = Command("serve", command)
