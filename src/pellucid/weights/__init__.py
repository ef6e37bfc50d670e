"""Model files: readers, packing for the kernels, the local store, and the sources of models.

open.py          opens a checkpoint of any format
checkpoint.py    the interface of a checkpoint
gguf.py          reader of GGUF files; their type numbers are in ``gguf_types.py``
safetensors.py   reader of safetensors files
written.py       writers of GGUF and safetensors files
sentence_modules.py  the list of modules of a sentence-transformers model
json_files.py    reads JSON files
mxfp4_checkpoint.py  safetensors with MXFP4 weights: joins the blocks and scales of a matrix into one tensor
companions.py    refuses files that are not models, such as adapters
files.py         files open for reading, and the common base of the checkpoints of both readers
quant/           block formats of stored weights
pack.py          stored tensors → packed weights or float32
store.py         the models on this machine; the name of a model → a path
staging.py       the folders of an unfinished pull, and the lock of a model
manifest.py      the files of a stored model with their hashes, and checks of the files
model_hash.py    a hash of a model's files
tensor_hash.py   a hash of a model's tensors
catalogue.py     models with a short name (``catalogue.json``)
fetching.py      fetches a catalogue model from its sources
sources/         the sources of model files
"""
