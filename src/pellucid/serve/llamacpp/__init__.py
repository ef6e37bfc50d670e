"""What llama.cpp's server has beside the other APIs, as data.

infill.py   /infill: the text of a gap
ranking.py  /rerank: documents by a query
"""
