"""Sampling: from logits to a token, and the stop criteria.

    logits → sampler steps, in order → softmax → draw → token

candidates.py   the tokens that are still possible, and their logits
step.py         the interface of a sampler step, the token history, the registry of steps
steps/          the sampler steps, one file each
chain.py        ``Chain``, the configuration, and ``Sampler``, a chain bound to one sequence
random.py       counter-based random numbers
options.py      the checked options of a generation, which define the chain and the stop criteria
checking.py     checks of option values by type and range
spelling.py     words in options → token ids
stop.py         stop strings and other stop criteria
grammars/       constraints: JSON schemas, regexes, choices, grammars
beams.py        beam search
logprobs.py     log-probabilities of tokens
step_trace.py   the effect of a step on a distribution
token_trace.py  the record of a token's choice
"""
