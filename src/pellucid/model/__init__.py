"""What a model is, and the readers that find this out from a checkpoint.

spec.py       ``ModelSpec`` and its parts; ``Model``: a spec and the tensors that fill its slots
shapes.py     the slots of a spec, and their shapes
read.py       a checkpoint → its ``Model``, checked
family.py     ``Family``: what a file of ``families/`` declares; discovery
families/     the families, one file each
decoder.py    the reader of decoders like Llama
readers.py    parts of readers that several families share
names.py      tensor names that most families share
config.py     metadata, checked by type and range
keys.py       checks of the metadata keys that a family does not read
slots.py      reads the stored values of a slot
"""
