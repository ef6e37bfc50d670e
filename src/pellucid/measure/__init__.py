"""How fast a model runs here, beside how fast this machine could: what ``pellucid bench`` and ``plan --measured`` do.

machine.py   what the kernels run on
roofs.py     bytes read and multiply-adds made in a second, at most
cost.py      how many of either a step needs
suite.py     what is measured: prompts, text, sentences
rounds.py    everything once a round, in turn; medians beside roofs
profile.py   the time of each operation of a step
"""
