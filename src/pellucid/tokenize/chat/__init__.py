"""Chat templates.

conversation.py       checks messages
template.py           messages → text, by the model's template
template_memory.py    limits the memory of worker processes on macOS and Windows
template_pipes.py     the pipes to worker processes, with deadlines
template_process.py   starts, watches and kills the worker processes
template_worker.py    the worker: Jinja, with limits
"""
