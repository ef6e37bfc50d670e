"""One server over several engines: replicas run on Ray, and requests survive the loss of a replica.

    ingress: HTTP → tokenize → route ──ZeroMQ──► replica: engine → tokens ──ZeroMQ──► text of an answer

See docs/decisions/0033-replicas.md. Needs the extra: pip install 'pellucid[cluster]'. Only the command line and
``capacity/`` import this folder.
"""
