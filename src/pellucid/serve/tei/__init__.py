"""The paths of Hugging Face's text-embeddings-inference (TEI): request and response bodies, without HTTP.

tei_fields.py      fields of several requests
tei_embedding.py   /embed, /embed_all, /embed_sparse, /similarity: vectors, and their cosines
prediction.py      /predict: scores of labels
any_task.py        POST /: the request of the model's task
tei_tokens.py      /decode, and /tokenize in TEI's form
information.py     /info: facts about a model
error_form.py      errors
"""
