"""The sampler steps, one file each, in the default order of the chain. Steps are discovered, not listed.

 10  penalties.py         repetition, frequency and presence penalties
 20  no_repeat_ngram.py   no n-gram twice
 30  dry.py               a penalty that grows with the length of a repetition
 40  logit_bias.py        numbers added to logits
 50  banned.py            tokens and words that must not come
 60  allowed.py           only these tokens
 70  min_new_tokens.py    no end token before a minimum length
 80  constraint.py        JSON schema, regex, choices or grammar
 90  temperature.py       temperature, also dynamic
100  top_k.py             the k most likely tokens
110  top_p.py             the most likely tokens up to a total probability
120  min_p.py             a share of the highest probability
130  typical.py           surprise near the entropy
140  top_n_sigma.py       logits near the highest one
150  epsilon.py           a fixed minimum probability
160  eta.py               a minimum probability that depends on the entropy
170  top_h.py             a share of the entropy
180  xtc.py               excludes the most likely tokens
190  mirostat.py          surprise near a target
"""
