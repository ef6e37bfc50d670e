"""The tasks of encoders. Each is a function of a model, and uses ``encode``, so it also runs on a cluster.

embedding.py       sentence vectors, sparse vectors, and vectors of all tokens
classification.py  scores of labels, for texts and pairs of texts
ranking.py         documents in the order of their relevance to a query
pair_prompts.py    prompts with a query and a document
filling.py         the tokens at masks
tagging.py         labels of tokens, with the characters that they cover
answering.py       the part of a text that answers a question
probabilities.py   probabilities of a few logits
model.py           the model that these functions need
"""
