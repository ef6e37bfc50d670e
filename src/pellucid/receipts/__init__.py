"""Receipts: small records of a run that any machine can replay.

receipt.py      the record: model, request, tokens, and a chain of hashes over the logits of each token
identity.py     the hashes that identify a model: weights, tokenizer, plan
issuer.py       makes the receipt of a finished sequence
edit_record.py  the edits of a request in its receipt
signature.py    signatures with Ed25519

``receipt_check.py`` replays a receipt.
"""
