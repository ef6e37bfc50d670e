"""What a model is, and the readers that find this out from a checkpoint.

spec.py              ``ModelSpec`` and its parts; ``Model``: a spec and the tensors that fill its slots
shapes.py            the slots of a spec, and their shapes
read.py              a checkpoint → its ``Model``, checked
family.py            ``Family``: what a file of ``families/`` declares; discovery
families/            the families, one file each
standard_decoder.py        reads decoders that are built like Llama
common_metadata.py   metadata that several families write alike
tensor_names.py      tensor names that several families share
config.py            metadata, checked by type and range
unread_keys.py       checks of the metadata keys that a family does not read
slots.py             reads the stored values of a slot
"""
