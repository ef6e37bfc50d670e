"""Captures inputs and outputs of modules and functions while a transformers model runs, by module name.

Values are captured in three ways: by hooks on modules, by wrapping functions of the model's file (``WRAPPED``), and by
watching functions of torch (``FUNCTIONS``). A function belongs to the innermost module that runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FUNCTIONS = ("softmax", "softplus", "mul", "cat")
WRAPPED = (
    "apply_rotary_pos_emb",
    "apply_rotary_pos_emb_interleave",
    "eager_attention_forward",
    "causal_conv1d_fn",
    "l2norm",
    "torch_chunk_gated_delta_rule",
    "mamba2_chunk_scan",
)

Tensor = torch.Tensor
Source = str | Callable[["Seen", str], Tensor]
"""Location of a value: "module" is a module's output, "<module" its input, "module:function" the result of a function
that it calls, "<module:function" the function's argument. "#1" takes the second of several values. Names are relative
to a block, so "" is the block. A source may also be a function of the captured values and the block's name.
"""


def copied(value: Any) -> Any:
    """A copy of a value with cloned tensors, which later operations do not change."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        return [copied(one) for one in value]
    return {key: copied(one) for key, one in value.items()} if isinstance(value, dict) else value


class Seen(TorchFunctionMode):
    """Arguments and results of all calls while a model runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.results: dict[str, list[Any]] = defaultdict(list)
        self.arguments: dict[str, list[tuple[list[Any], dict[str, Any]]]] = defaultdict(list)
        self._inside: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            module.register_forward_hook(self._after(name))

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self._inside.append(name)
            self.arguments[name].append((copied(args), copied(kwargs)))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, result: Any) -> None:
            self._inside.pop()
            self.results[name].append(copied(result))

        return hook

    def called(self, function: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function, and record its arguments and its result."""
        name = f"{self._inside[-1] if self._inside else ''}:{function}"
        self.arguments[name].append((copied(args), copied(kwargs)))
        result = call(*args, **kwargs)
        self.results[name].append(copied(result))
        return result

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in FUNCTIONS:
            return self.called(name, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    @contextmanager
    def wrapped(self) -> Iterator[None]:
        """Record calls of functions of the model's file and of torch until the block ends."""
        file = import_module(type(self.model).__module__)
        plain = {name: getattr(file, name) for name in WRAPPED if hasattr(file, name)}

        def wrap(name: str) -> Callable[..., Any]:
            return lambda *args, **kwargs: self.called(name, plain[name], args, kwargs)

        for name in plain:
            setattr(file, name, wrap(name))
        try:
            with self:
                yield
        finally:
            for name, function in plain.items():
                setattr(file, name, function)

    def __call__(self, source: str, at: str = "", call: int = -1) -> Tensor:
        """Value of a source below the module ``at``, by default of the last call."""
        path, _, part = source.partition("#")
        module, colon, function = path.removeprefix("<").partition(":")
        name = ".".join(one for one in (at, module) if one) + colon + function
        if path.startswith("<"):
            args, kwargs = self.arguments[name][call]
            found: Any = [*args, *kwargs.values()]
        else:
            found = self.results[name][call]
        if isinstance(found, dict):
            return found[part]
        return found[int(part or 0)] if isinstance(found, list) else found

    def given(self, name: str, key: str) -> Tensor:
        """Keyword argument of the last call of a module or function."""
        return self.arguments[name][-1][1][key]

    def module(self, name: str) -> Any:
        """A module of the model."""
        return self.model.get_submodule(name)
