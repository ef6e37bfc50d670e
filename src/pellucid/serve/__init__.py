"""The HTTP server and the batch runner: requests of OpenAI's, Anthropic's, Ollama's and llama.cpp's APIs.

openai/     request bodies of OpenAI's API → options; generations → response bodies
batch.py    files of requests (``pellucid batch``)
run.py      the server (``pellucid serve``): listens until SIGTERM or Ctrl-C
app.py      the routes of all APIs
apis/       the APIs, one file each
api.py      declarations of an API; a client's request; streams of events
guard.py    keys, hosts, origins
pool.py     the models of a server
"""
