"""Tasks that need the model, and the engine that runs them together.

inputs.py           texts, chat messages and sentences → checked token ids
engine.py           the thread that runs the steps of all requests
run.py              a submitted task: its results, and the reader that receives them
scheduler.py        chooses the sequences and tokens of a step
pace.py             measures step times; limits the prefill tokens of a step
speculation.py      prompt lookup: draft tokens from the text itself, and the number worth checking
compiled.py         compiles the kernels that a model needs for its first answer
model_runner.py     ``ModelRunner``: a plan bound to weights, memory, cache and threads
sequence.py         one sequence: logits → token → text, and its stop criteria
generation.py       the task that prefills a prompt and continues it with several sequences
request.py          a prompt with its options, run as a task; collects the token outputs
output.py           results: ``Generation``, ``Score``, ``Beams``
beam_search.py      the task of a beam search
scoring.py          the task that scores a given text, by teacher forcing
embedding.py        the task that computes sentence vectors
"""
