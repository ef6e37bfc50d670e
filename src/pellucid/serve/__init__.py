"""Other programs' doors to a model: OpenAI's requests and answers, and files of them.

openai/     bodies of OpenAI's requests → options; generations → bodies of its answers
batch.py    files of requests (``pellucid batch``)
run.py      the server (``pellucid serve``): listens, and ends when it is told to
app.py      the routes of all APIs
apis/       the APIs, one file each
api.py      what such a file declares; a client's call, events
guard.py    keys, hosts, origins
pool.py     the models of a server
"""
