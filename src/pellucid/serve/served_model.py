"""A model that the server serves: in its own process (``LLM``) or on a cluster (``cluster/remote_model.py``)."""

from typing import Any, TypeAlias

from pellucid.base_llm import BaseLLM

ServedModel: TypeAlias = BaseLLM[Any]
