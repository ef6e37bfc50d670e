"""Pellucid: a fast LLM inference engine for CPUs that you can see through.

    llm = pellucid.load("smollm2")
    llm.generate("The capital of France is", temperature=0).text
    for piece in llm.stream("Once upon a time", seed=1): print(piece, end="")
    llm.chat([{"role": "user", "content": "Hi"}]).text
    pellucid.load("minilm").embed(["a sentence", "another"])

Importing this package is cheap: NumPy and the other dependencies are imported when a model is loaded. This file
does not even import ``typing``. It runs before ``__main__.py`` handles Ctrl-C, and Ctrl-C would print a traceback.
"""

from __future__ import annotations

import os  # every Python process has imported it already

# Type checkers treat a variable of this name as True, as they treat ``typing.TYPE_CHECKING``.
TYPE_CHECKING = False
__version__ = "0.1.0"
__all__ = ["LLM", "Generation", "Options", "errors", "load"]

if TYPE_CHECKING:
    from typing import Any

    from pellucid import errors
    from pellucid.engine.output import Generation
    from pellucid.llm import LLM
    from pellucid.loading import load
    from pellucid.sample.options import Options

_MODULE_OF = {
    "LLM": "pellucid.llm",
    "Generation": "pellucid.engine.output",
    "load": "pellucid.loading",
    "Options": "pellucid.sample.options",
}


# Kernels are compiled from their source files, and data files lie beside the modules.
_ZIPPED = (
    ""
    if os.path.isdir(os.path.dirname(__file__))
    else "pellucid cannot run inside a zip file: unpack it, or use pip"
)


def __getattr__(name: str) -> Any:
    import importlib

    if _ZIPPED and name in __all__:
        raise ImportError(_ZIPPED)
    if name == "errors":
        return importlib.import_module("pellucid.errors")
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
