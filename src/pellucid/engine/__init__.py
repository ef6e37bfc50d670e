"""Tasks that need the model, and the engine that runs them together.

inputs.py           texts, chat messages and sentences → checked token ids
engine.py           the thread that repeats steps for all requests
run.py              a task on its way: when it runs, its results, and who reads them
scheduler.py        which tokens of which sequences run in a step
pace.py             how many tokens of prompts a step may read
speculation.py      tokens that may follow are read together with the last one
compiled.py         compiles what a model needs until its first answer
model_runner.py     ``ModelRunner``: a plan bound to weights, memory, cache and threads
sequence.py         one text: logits → token → text, and whether it ends
generation.py       the task that reads a prompt and continues it with several sequences
request.py          a prompt with its options, run as a task; collects the token outputs
output.py           results: ``Generation``, ``Score``, ``Beams``
beam_search.py      the task of a beam search
scoring.py          the task that scores a given text, by teacher forcing
embedding.py        the task that computes sentence vectors
"""
