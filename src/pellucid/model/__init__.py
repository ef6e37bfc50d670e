"""The spec of a model, and the readers that derive it from a checkpoint.

spec.py              ``ModelSpec`` and its parts
positions.py         the position encodings of a spec
weight_map.py        ``Model``: a spec and the tensors that fill its slots
shapes.py            the slots of a spec, and their shapes
read.py              a checkpoint → its ``Model``, checked
family.py            ``Family``: the declaration of a family; discovery
families/            the families, one file each
standard_decoder.py  reads decoders with the structure of Llama
standard_encoder.py  reads encoders with the structure of BERT
encoder_decoder.py   reads encoder-decoders with the structure of BART
standard_mixture.py  reads mixtures of experts
sliding_windows.py   reads sliding windows, for families with a window in some layers
hybrid.py            shared parts of readers of models with recurrent layers
text_part.py         the text model of a multimodal checkpoint
gguf_metadata.py     reads GGUF metadata that several families share
gguf_outputs.py      reads the outputs of an encoder in GGUF
rotary_metadata.py   reads rotary positions
outputs.py           the parts of a spec after the last block: pooling, output layers, head, labels, tasks
scores.py            scores of labels from the logits of a classifier
read_outputs.py      reads these parts of an encoder: ``sentence_modules.py`` or ``output_heads.py``
decoder_outputs.py   reads these parts of a language model that is used as an encoder
gguf_outputs.py      reads these parts of a GGUF file
decision_blocks.py   reads the blocks of an encoder that answer questions
decision_head.py     reads a head that scores labels instead of tokens
pointer_head.py      reads a head that compares options with the question
joint_head.py        reads a head that scores the options of all questions together
rerankers.py         rerankers made of language models: words, prompts
sentence_modules.py  reads the modules of sentence-transformers
output_heads.py      reads heads: classification, labels of tokens, answers, masks
tensor_names.py      tensor names that several families share
config.py            metadata, checked by type and range
unread_keys.py       checks of the metadata keys that a family does not read
slot_reader.py       reads the stored values of a slot
encoder_weights.py   the matrices of encoders that are converted when they are loaded
smoothing.py         factors that share the rounding error between activations and weights
describe.py          a spec in words
block_sizes.py       the sizes of a model and its blocks as plain values
"""
