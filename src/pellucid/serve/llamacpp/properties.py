"""/props and /slots: state of the server, in llama.cpp's form.

The engine has no slots: any number of requests share a step. /slots lists the running sequences and one idle slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.llm import LLM
from pellucid.sample.options import Options
from pellucid.serve.live_requests import LiveRequest
from pellucid.serve.llamacpp.generation_fields import BUILD, LLAMACPP_RULES, settings_of
from pellucid.serve.served_model import ServedModel

ELSEWHERE = 256  # slots that a model on replicas reports


def properties(llm: ServedModel, name: str) -> dict[str, Any]:
    """Body of GET /props for the model ``name``."""
    tokenizer = llm.tokenizer
    usual = Options.of(**(llm.recommended or LLAMACPP_RULES.defaults))
    return {
        "default_generation_settings": {**_idle(0, llm), "params": settings_of(usual, None)},
        "total_slots": _most(llm),
        "model_alias": name,
        "model_path": llm.checkpoint.path.name,  # without the folder, which is private to the server
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": tokenizer.chat_template or "",
        "bos_token": tokenizer.named_tokens.get("bos_token", ""),
        "eos_token": tokenizer.named_tokens.get("eos_token", ""),
        "build_info": BUILD,
        "is_sleeping": False,
    }


def slots(llm: ServedModel, running: Sequence[LiveRequest]) -> list[dict[str, Any]]:
    """Body of GET /slots: the running sequences, and an idle slot if there is room for another sequence."""
    slot_list = list[dict[str, Any]]()
    for live in running:
        for group in live.groups:
            for one in group.outputs:
                most = group.options.max_new_tokens
                remaining = -1 if most is None else most - len(one.ids)
                state = {"has_next_token": not one.ended, "n_remain": remaining, "n_decoded": len(one.ids)}
                shown = {"request": live.number, "is_processing": not one.ended, "next_token": [state]}
                slot_list.append(
                    {**_idle(len(slot_list), llm), "n_prompt_tokens": len(group.prompt), **shown}
                )
    return slot_list if len(slot_list) >= _most(llm) else [*slot_list, _idle(len(slot_list), llm)]


def _idle(number: int, llm: ServedModel) -> dict[str, Any]:
    return {
        "id": number,
        "n_ctx": llm.context,
        "speculative": False,
        "is_processing": False,
        "next_token": [{"has_next_token": False, "n_remain": -1, "n_decoded": 0}],
    }


def _most(llm: ServedModel) -> int:
    """Maximum number of sequences in a step."""
    return llm.engine.runner.limits.sequences if isinstance(llm, LLM) else ELSEWHERE
