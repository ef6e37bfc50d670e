"""pellucid stop MODEL...: a running server removes models from its memory."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.server_client import DEFAULT_URL, Key, Url, ask, loaded_models
from pellucid.errors.messages import brief


def command(
    models: Annotated[list[str], common.argument("MODEL", "Names that `pellucid ps` shows.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Remove models from the memory of a running server, after their requests. The next request loads them again.

    Ctrl-C in its terminal ends the server itself.
    """
    from pellucid.errors import NotFound

    loaded = [str(one["name"]) for one in loaded_models(url, key)]
    names = dict.fromkeys(name if name in loaded else name.removesuffix(":latest") for name in models)
    for name in names:
        if name not in loaded:
            raise NotFound(f"{brief(name)} is not loaded; loaded: {', '.join(loaded) or 'none'}")
    for name in names:
        ask(url, key, "/api/generate", {"model": name, "keep_alive": 0})
        print(f"stopped {name}")


COMMAND = Command("stop", command)
