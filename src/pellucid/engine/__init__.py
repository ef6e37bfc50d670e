"""Requests, and the engine that runs them together on one model.

request.py          a prompt and the sequences that continue it, with their outputs and results
local_request.py    a request on an engine of this process
inputs.py           texts, chat messages and sentences → checked token ids
engine.py           the thread that repeats ``pipeline.step`` for all requests
messages.py         messages to the engine's thread
scheduler.py        chooses the sequences and tokens of a step; ``fairness.py`` shares the machine between clients
step_times.py       measures step times; limits the prefill tokens of a step
cache_manager.py    pages of keys and values, and the prefix cache
model_runner.py     ``ModelRunner``: a plan bound to weights, memory, cache and threads
data_parallel.py    divides the texts of an encoder's step among threads
setup_program.py    runs the operations of a plan that compute constants of the weights
task.py, tasks/     the kinds of work: generation, beam search, scoring, encoding
encoder_input.py    the input of an encoder: ids and types of the tokens
reading.py          work that uses the model between steps, such as profiles
job.py, jobs.py     a task's state in the engine; the running jobs
source.py           the source of a request to an encoder-decoder, which the encoder runs once
results.py          passes the results of a task to its reader
text_sequence.py    one sequence: logits → token → text, and its stop criteria
speculation.py      prompt lookup: draft tokens from the text itself; ``draft.py``: draft tokens from a smaller model
output.py           results: ``TokenOutput``, ``Generation``, ``Score``, ``Beams``
probe.py            the interface of traces and edits; ``traced_program.py`` runs plans with them
context_memory.py   the context that fits into the free memory
compile_kernels.py  compiles the kernels that a model needs for its first answer
"""
