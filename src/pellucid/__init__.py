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
__all__ = ["LLM", "Generation", "errors", "list", "load", "pull"]

if TYPE_CHECKING:
    from typing import Any

    from pellucid import errors
    from pellucid.engine.output import Generation
    from pellucid.llm import LLM
    from pellucid.loading import load
    from pellucid.weights.store import installed as list
    from pellucid.weights.store import pull

_MODULE_OF = {
    "LLM": "pellucid.llm",
    "Generation": "pellucid.engine.output",
    "load": "pellucid.loading",
    "list": "pellucid.weights.store",
    "pull": "pellucid.weights.store",
}
_OTHER_NAMES = {
    "Options": "options are arguments: llm.generate(prompt, temperature=0)",
    "SamplingParams": "options are arguments: llm.generate(prompt, temperature=0)",
    "GenerationConfig": "options are arguments: llm.generate(prompt, temperature=0)",
    "AutoModel": "pellucid.load(MODEL) loads a model of any task",
    "AutoModelForCausalLM": "pellucid.load(MODEL) loads a model of any task",
    "SentenceTransformer": "pellucid.load(MODEL).embed(texts) makes vectors",
    "CrossEncoder": "pellucid.load(MODEL).rerank(query, texts) scores pairs",
    "Llama": "pellucid.load(MODEL) loads a model of any task",
    "get_model": "pellucid.load(MODEL) loads a model of any task",
    "AutoTokenizer": "pellucid.tokenize.load_tokenizer(MODEL) loads a tokenizer",
    "generate": "pellucid.load(MODEL).generate(prompt) makes text",
    "chat": "pellucid.load(MODEL).chat(messages) answers",
    "embed": "pellucid.load(MODEL).embed(texts) makes vectors",
    "show": "pellucid.load(MODEL).spec describes a model",
}
"""Names of transformers, vLLM, Ollama and others, and what an error says about them."""


# Kernels are compiled from their source files, and data files lie beside the modules.
_ZIPPED = (
    "" if os.path.isdir(os.path.dirname(__file__)) else "pellucid cannot run inside a zip file: unpack it, or use pip"
)


def __getattr__(name: str) -> Any:
    import importlib

    if _ZIPPED and name in __all__:
        raise ImportError(_ZIPPED)
    if name == "errors":
        return importlib.import_module("pellucid.errors")
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), "installed" if name == "list" else name)
    hint = f": {_OTHER_NAMES[name]}" if name in _OTHER_NAMES else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> Any:
    return sorted([*__all__, "__version__"])
