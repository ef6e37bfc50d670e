"""One server over several engines: replicas on Ray, requests that outlive them (docs/decisions/0033-replicas.md).

    ingress: HTTP → tokenize → route ──ZeroMQ──► replica: engine → tokens ──ZeroMQ──► text of an answer

Needs the extra: pip install 'pellucid[cluster]'. Nothing outside of this folder imports it but the command line.
"""
