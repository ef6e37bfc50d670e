"""llama.cpp's own paths: request and response bodies, without HTTP.

generation_fields.py  request fields as generation options, and options as responses repeat them
prompts.py            prompts: text, token ids, both mixed
llama_completion.py   /completion: continues prompts
infill.py             /infill: fills a gap between two texts
telemetry.py          timings and progress of the prompt, for OpenAI's responses too
llama_embedding.py    /embedding: vectors of texts
systemone.py          /v1/systemone: answers typed questions about a state
properties.py         /props, /slots: state of the server
"""
