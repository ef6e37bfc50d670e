"""One server over several engines: replicas run on Ray, and requests survive the loss of a replica.

    ingress: HTTP → tokenize → route ──ZeroMQ──► replica: engine → tokens ──ZeroMQ──► ingress: response

The ingress is the HTTP server. A replica is a process with the model and an engine. A replica may be divided into
stages: processes that each run some of the model's blocks. See docs/decisions/0033-replicas.md. The folder needs the
extra: pip install 'pellucid[cluster]'. Only the command line and ``capacity/`` import this folder.
"""
