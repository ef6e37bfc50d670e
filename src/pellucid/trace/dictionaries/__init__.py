"""Dictionaries of features: sparse autoencoders (SAEs), transcoders, cross-layer transcoders and crosscoders.

dictionary.py         `Dictionary`: opens the files for a model, and makes edits of features
sparse_coder.py       an encoder to features and a decoder: activations, reconstructions
activations.py        ReLU, JumpReLU, top-k, gated: pre-activations to activations
feature_edits.py      the functions of edits: change features, or replace values by their reconstruction
normalization.py      normalisation of the input by its norm, or by mean and standard deviation
decoder_rows.py       the vectors of features, in memory or read from the file on demand
array_files.py        arrays of safetensors and npz files, checked
coder_weights.py      the contents of a file with a sparse coder
named.py              dictionaries by name, as a server gets them
hooks.py              names of hooks in other tools, as points
config_text.py        the simple YAML of circuit-tracer's config.yaml
formats/              one module for each format of files: SAELens, Gemma Scope, circuit-tracer, sparsify
"""
