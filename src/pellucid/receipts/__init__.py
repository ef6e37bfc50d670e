"""Receipts: small records of a run that any machine can replay.

``receipt_check.py`` replays a receipt.
"""
