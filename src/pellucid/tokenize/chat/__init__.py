"""Chat templates.

conversation.py       checks messages
template.py           messages → text, by the model's template
template_process.py   starts, watches and kills the worker processes
template_worker.py    the worker: Jinja, with limits
"""
