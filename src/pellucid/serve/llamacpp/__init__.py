"""What llama.cpp's server has beside the other APIs, as data.

fields.py       fields of its requests as options of a generation, and options as its answers repeat them
prompts.py      prompts: texts, token ids, both mixed
completion.py   /completion: a prompt in, what follows it out
infill.py       /infill: the text of a gap
telemetry.py    timings, and how far a prompt has been read, for OpenAI's answers too
embedding.py    /embedding: vectors of texts
ranking.py      /rerank: documents by a query
properties.py   /props, /slots: how the server is
"""
