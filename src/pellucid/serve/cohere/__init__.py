"""Cohere's and Jina's paths for encoders: request and response bodies, without HTTP.

ranking.py           /v1/rerank, /v2/rerank, /rerank: ranks documents by a query
cohere_embedding.py  /v1/embed, /v2/embed: vectors of texts in several number formats
meta.py              the part of Cohere's responses that counts tokens; errors
"""
