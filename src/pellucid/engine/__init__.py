"""Tasks that need the model, the model runner that executes their steps, and the prefix cache.

inputs.py           texts, chat messages and sentences → checked token ids
model_runner.py     ``ModelRunner``: a plan bound to weights, memory, cache and threads
prefix_cache.py     the last request's block table, for a prompt that begins in the same way
prefill.py          prefill of a prompt, in chunks
sequence.py         one text: logits → token → text, and whether it ends
generation.py       the task that continues one prompt with several sequences
request.py          a prompt with its options, run as a task; collects the token outputs
output.py           results: ``Generation``, ``Score``, ``Beams``
beam_search.py      the task of a beam search
scoring.py          the task that scores a given text, by teacher forcing
embedding.py        the task that computes sentence vectors
"""
