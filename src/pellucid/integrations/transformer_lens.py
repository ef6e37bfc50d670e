"""A driver of TransformerLens 4: its bridge and its cache, with runs of Pellucid.

    from pellucid.integrations.transformer_lens import bridge

    with bridge("smollm2") as model:
        logits, cache = model.run_with_cache("The capital of France is")
        cache["blocks.5.attn.hook_pattern"]  # torch.Tensor (batch, head, query, key)
        model.forward("The capital of France is", intervene={"blocks.5.attn.hook_z": {"op": "suppress"}})

The model may be any decoder that Pellucid loads, also a quantized GGUF file; no torch model is made. The hooks are the
names in ``trace/transformer_lens_names.py``. Source: ``Driver`` and ``validate_driver`` in
``transformer_lens.model_bridge.driver_protocol`` (TransformerLens 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.llm import LLM
from pellucid.loading import load
from pellucid.model.describe import block_sizes
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit, ablate, add, replace, scale
from pellucid.trace.transformer_lens_names import hooks_of, names_of_blocks

try:
    import torch
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.driver_protocol import ForwardResult
    from transformer_lens.model_bridge.remote_bridge import RemoteBridge
except ImportError as error:
    raise ImportError(
        f"the driver needs TransformerLens 4.3, which is not installed ({error}): "
        "pip install 'pellucid[transformer-lens]'"
    ) from error

OPS = ("suppress", "scale", "add", "set")
"""The operations of an intervention: {"op": "scale", "factor": 0.5, "pos": [3, 4]}."""
LOGITS = "project.logits"


def bridge(model: str | Path | LLM, **options: Any) -> Any:
    """A ``RemoteBridge`` of TransformerLens that runs a model: its name or path, or a loaded model.

    ``pellucid.load`` takes the same ``options``, such as ``precise=True``. A model that was loaded here is closed with
    the bridge.

    Raises: as ``pellucid.load``; InvalidRequest if the model is not a decoder.
    """
    if isinstance(model, LLM):
        if options:
            raise InvalidRequest(f"{', '.join(options)}: the model is loaded: give the options to pellucid.load")
        return _bridge(PellucidDriver(model))
    llm = load(model, **options)
    try:
        return _bridge(PellucidDriver(llm, owned=True))
    except BaseException:
        llm.close()
        raise


def _bridge(driver: PellucidDriver) -> Any:
    return RemoteBridge(BridgeAdapter(driver.bridge_config), driver.tokenizer, driver)


class BridgeAdapter:
    """The adapter of an architecture, as a bridge uses it. No name of a hook is an alias: the driver has all names."""

    component_mapping: Mapping[str, Any] = {}
    supports_hf_output_attentions = bool_4d_mask_is_keep = False

    def __init__(self, config: Any) -> None:
        self.cfg = config


class PellucidDriver:
    """Runs a loaded decoder for a bridge of TransformerLens. Implements its ``Driver`` protocol.

    Attributes:
        supported_hook_points: the hooks that the model has.
        non_fireable_hook_points: hooks that only other models have.
        owned: ``close`` closes the model, too.
    """

    provides_sequence_logits = True

    def __init__(self, llm: LLM, *, owned: bool = False) -> None:
        if not llm.spec.generates or llm.spec.encoder:
            raise InvalidRequest(f"model={llm.spec.name!r}: the driver of TransformerLens runs decoders")
        self._llm, self.owned = llm, owned
        self._hooks = hooks_of(llm.points)
        self.architecture = llm.spec.family
        self.tokenizer = BridgeTokenizer(llm.tokenizer)
        self.bridge_config = bridge_config(llm)
        self.supported_hook_points = frozenset(self._hooks)
        every = names_of_blocks(range(len(llm.spec.blocks)))
        self.non_fireable_hook_points = frozenset(every) - self.supported_hook_points

    def forward(
        self,
        input_ids: Any = None,
        *,
        capture: Sequence[str] = (),
        intervene: Mapping[str, Any] | None = None,
        max_new_tokens: int = 1,
        return_logits: bool = True,
        attention_mask: Any = None,
        **others: Any,
    ) -> Any:
        """Read token ids (B, T), and return the values of the hooks ``capture``, and the logits (B, T, V).

        All sequences have the same length and no padding. Captured values and logits are float32, for the T tokens of
        the input; ``new_tokens`` (B, ``max_new_tokens``) are the most likely next tokens. ``intervene`` maps hooks to
        {"op": "suppress"}, {"op": "scale", "factor": 2.0}, or {"op": "add" or "set", "value": a number or an array},
        with "pos", a position or a list of positions, if it does not apply to all.

        Raises:
            InvalidRequest: an intervention or an id is invalid, or rows have padding.
            NotImplementedError: an intervention is a function, or there is another argument.
        """
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise NotImplementedError(f"{', '.join(given)}: the driver of Pellucid takes token ids alone")
        ids = _ids(input_ids)
        if attention_mask is not None and not np.all(_array(attention_mask)):
            raise InvalidRequest("attention_mask: has zeros, but sequences have no padding: run each length by itself")
        if unknown := [name for name in capture if name not in self._hooks]:
            raise InvalidRequest(f"capture={brief(unknown[0])}: the model has no such hook")
        tokens = ids.shape[1]
        edits = [self._edit(hook, spec, tokens) for hook, spec in (intervene or {}).items()]
        points = {hook: self._hooks[hook] for hook in capture}
        if return_logits:
            points["logits"] = LOGITS
        names = [f"{point}[tokens=0:{tokens}]" for point in dict.fromkeys(points.values())]
        with self._llm.trace(*names, edits=edits) as trace:
            made = self._llm.generate(ids.tolist(), max_new_tokens=max_new_tokens, temperature=0, ignore_eos=True)
        if trace.dropped:
            raise InvalidRequest("capture: the values do not fit into 1 GiB: capture fewer hooks, or fewer tokens")
        arrays = {point: trace[point] for point in dict.fromkeys(points.values())}
        return ForwardResult(
            logits=arrays[LOGITS] if return_logits else None,
            captured={hook: arrays[points[hook]] for hook in capture},
            new_tokens=np.array([one.ids for one in made]),
            raw_output=made,
        )

    def close(self) -> None:
        if self.owned:
            self._llm.close()

    def supports(self, feature: str) -> bool:
        """False: gradients, weights and functions of torch are not available."""
        return False

    def _edit(self, hook: str, spec: Any, tokens: int) -> Edit:
        if callable(spec):
            raise NotImplementedError(
                f"{hook}: the driver of Pellucid takes no functions of tensors: give an op ({', '.join(OPS)}), or use "
                "pellucid.trace.call"
            )
        if hook not in self._hooks:
            raise InvalidRequest(f"intervene={brief(hook)}: the model has no such hook")
        op = spec.get("op") if isinstance(spec, Mapping) else None
        if op not in OPS:
            raise InvalidRequest(f"{hook}: op={brief(op)}: must be one of {', '.join(OPS)}")
        where = self._hooks[hook] + _at(hook, spec.get("pos"), tokens)
        if op == "suppress":
            return ablate(where)
        needed = "factor" if op == "scale" else "value"
        if needed not in spec:
            raise InvalidRequest(f"{hook}: the op {op} needs a {needed}")
        if op == "scale":
            return scale(where, spec["factor"])
        value = _array(spec["value"])
        return add(where, value) if op == "add" else replace(where, value)


def bridge_config(llm: LLM) -> Any:
    """The sizes of a model as a ``TransformerBridgeConfig``. If blocks differ, of the first block with attention."""
    spec = llm.spec
    sizes = block_sizes(spec)
    first = next((block for block in sizes if block["heads"]), sizes[0])
    norm = spec.final_norm or spec.blocks[0].norm
    own = llm.tokenizer
    return TransformerBridgeConfig(
        d_model=spec.embedding.width,
        d_head=first["head_width"] or spec.embedding.width,
        n_heads=first["heads"] or 1,
        n_key_value_heads=first["kv_heads"] or None,
        n_layers=len(sizes),
        n_ctx=llm.context,
        d_mlp=first["hidden"] or None,
        d_vocab=spec.embedding.vocabulary,
        d_vocab_out=spec.output_width,
        architecture=spec.family,
        model_name=spec.name,
        act_fn=first.get("activation", "none"),
        gated_mlp=first.get("gated", False),
        eps=norm.eps,
        normalization_type="RMS" if norm.kind == "rms" else "LN",
        uses_rms_norm=norm.kind == "rms",
        parallel_attn_mlp=first["parallel"],
        num_experts=first["experts"] or None,
        experts_per_token=first["active_experts"] or None,
        # A text has the tokens that the model's own tokenizer gives it.
        default_prepend_bos=_adds_bos(own),
        tokenizer_prepends_bos=_adds_bos(own),
        device="cpu",
    )


class BridgeTokenizer:
    """The model's tokenizer as a bridge uses it: the part of transformers' interface that needs no padding."""

    padding_side = "right"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._own = tokenizer
        self.bos_token_id: int | None = tokenizer.bos_id
        self.eos_token_id: int | None = min(tokenizer.eos_ids, default=None)
        self.pad_token_id: int | None = None

    @property
    def bos_token(self) -> str | None:
        return None if self.bos_token_id is None else self._own.vocabulary.tokens[self.bos_token_id]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The ids of a text, or of each text: {"input_ids": ids}. Raises InvalidRequest if tensors need padding."""
        texts = [text] if isinstance(text, str) else list(text)
        ids = [self._own.encode(one, add_special=add_special_tokens) for one in texts]
        if truncation and max_length:
            ids = [one[:max_length] for one in ids]
        if return_tensors is None:
            return {"input_ids": ids[0] if isinstance(text, str) else ids}
        if len({len(one) for one in ids}) > 1:
            raise InvalidRequest("texts: have different numbers of tokens: run each text by itself")
        return {"input_ids": torch.tensor(ids)}

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return self._own.decode(_array(ids).reshape(-1).tolist(), skip_special=skip_special_tokens)

    def batch_decode(self, ids: Any, skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in ids]


def _adds_bos(tokenizer: Tokenizer) -> bool:
    return tokenizer.bos_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id]


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)


def _ids(values: Any) -> NDArray[np.int64]:
    ids = _array([] if values is None else values)
    if ids.ndim not in (1, 2) or not ids.size or ids.dtype.kind not in "iu":
        raise InvalidRequest(f"input_ids={brief(values)}: must be token ids, (T,) or (B, T)")
    return ids.reshape(-1, ids.shape[-1]).astype(np.int64)


def _at(hook: str, positions: Any, tokens: int) -> str:
    """The bracket of a selection for the positions of an intervention, which may count from the end."""
    if positions is None:
        return ""
    listed = [positions] if isinstance(positions, int) else list(positions)
    if not listed or not all(isinstance(one, int) and -tokens <= one < tokens for one in listed):
        raise InvalidRequest(f"{hook}: pos={brief(positions)}: must be positions below {tokens:,}")
    return f"[tokens={','.join(map(str, sorted({one % tokens for one in listed})))}]"
