"""Speed of a model on this machine, relative to the machine's limits: ``pellucid bench`` and ``plan --measured``.

machine.py   the machine that the kernels run on
roofs.py     the machine's limits: bytes read and multiply-adds per second
cost.py      the bytes and multiply-adds that a step needs
suite.py     the workloads: prefill, decode, sentence vectors
rounds.py    measures every workload once per round, and gives medians and roofs
profile.py   the time of each operation of a step
"""
