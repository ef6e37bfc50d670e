"""The HTTP server and the batch runner: requests of other servers' APIs.

``app.py`` routes a request, and a file of ``apis/`` reads its body (``request_body.py``). The folder of the API
converts the body to engine requests, and the output of these requests to a response.

server.py               the server (``pellucid serve``): listens until SIGTERM or Ctrl-C
app.py                  the routes of all APIs
apis/                   the APIs, one file each
api.py                  declarations of an API; a client's request; streams of events
request_body.py         bodies: Structs with fields, generation options, errors that name a field
generation_options.py   the options of requests, which the sampler steps declare
json_schema.py          JSON schemas of Structs, for /openapi.json (``openapi.py``)
ignored_fields.py       fields that are accepted without effect, with the reasons
generation_response.py  complete and streamed responses of requests that generate
chat/                   conversations, tool calls and reasoning, for all chat APIs
openai/ responses/ anthropic/ ollama/ llamacpp/ cohere/ vllm/ tei/   bodies and responses of the APIs
receipt_field.py        the field ``receipt`` of answers
encoder_inputs.py       texts of requests to encoders: prompts, truncation, the model's task
encoder_response.py     routes of requests to encoders
vector_formats.py       vectors as floats, bytes, bits or base64
look/                   queries of the page about a model
pool.py                 the models of a server
request_spans.py        OpenTelemetry spans of requests
guard.py                keys, hosts, origins
batch.py                files of requests (``pellucid batch``)
"""
