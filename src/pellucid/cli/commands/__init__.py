"""The commands. A module declares a ``Command`` or a ``CommandGroup``; they are discovered, not listed.

run.py        continue a text
chat.py       a conversation
beams.py      beam search
sample.py     how each token is chosen
embed.py      sentence vectors
tokenize.py   the tokens of a text
eval_.py      perplexity and KL divergence
bench.py      speed, relative to the machine's limits
plan.py       the operations of a model
info.py       facts about a model or the machine
list_.py      models that are here, and those of the catalogue
pull.py       fetch a model
verify.py     check stored models
rm.py         remove a model
"""
