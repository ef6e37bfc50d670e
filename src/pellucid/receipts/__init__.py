"""Receipts: small records of a run that any machine can replay.

``receipts/check.py`` replays a receipt.
"""
