"""Tasks that need the model, and the model runner that executes their steps.

inputs.py           texts, chat messages and sentences → checked token ids
model_runner.py     ``ModelRunner``: a plan bound to weights, memory, cache and threads
prefill.py          prefill of a prompt, in chunks
sequence.py         one text: logits → token → text, and whether it ends
generation.py       the task that continues one prompt with several sequences
request.py          a prompt with its options, run as a task; collects the token outputs
output.py           results: ``Generation``, ``Score``, ``Beams``
beam_search.py      the task of a beam search
scoring.py          the task that scores a given text, by teacher forcing
embedding.py        the task that computes sentence vectors
"""
