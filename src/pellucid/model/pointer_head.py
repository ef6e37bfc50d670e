"""The head of llama.cpp's decision type "kev": a query and a key for each token.

    [q | k] = W x + b      x: the normalised vector of a token (D,); q and k: (P,)

The score of an option is the product of the query of the prompt's last token and the key of the option's last token
(``decide/option_layouts.py``).

Source: ``KevModel`` in llama.cpp's conversion/lev.py, and src/models/qwen35.cpp.
"""

from __future__ import annotations

from pellucid.errors import FileFormatError
from pellucid.model.config import Config
from pellucid.model.gguf_outputs import CLASSIFIER, gguf_dense
from pellucid.model.output_heads import OutputParts
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint

KEV = "kev"
WIDTH = "embedding_length_out"


def pointer_head(checkpoint: Checkpoint, own: Config) -> OutputParts:
    """The outputs of a language model with a pointer head. ``own`` adds the architecture to its keys.

    Raises:
        FileFormatError: the head is missing, or its width is not twice the width of a key.
    """
    name, slots = CLASSIFIER[1], dict[str, Slot]()
    if f"{name}.weight" not in checkpoint.tensors:
        raise FileFormatError(
            checkpoint.path, f"{name}.weight", f"tensor missing; a model of the decision type {KEV} needs it"
        )
    dense = gguf_dense(checkpoint, name, 0, slots)
    own.check_count(WIDTH, dense.width, f"the rows of {name}.weight")
    if dense.width % 2:
        raise own.error(WIDTH, f"is {dense.width:,}; it must be even: queries and keys have equal widths")
    return OutputParts("decide", None, (dense,), slots)
