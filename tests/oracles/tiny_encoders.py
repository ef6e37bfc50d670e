"""The tiny encoders of tests/goldens/model/encoders, as data.

Each has the class of the model, the class of its configuration, and options of the configuration. A name is the family,
or the family and a variant. Each family has two shapes, and each head of a family once.
"""

from typing import Any

import tiny_bert_like
import tiny_deberta

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {**tiny_bert_like.MODELS, **tiny_deberta.MODELS}
