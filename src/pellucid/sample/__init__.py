"""From logits to a token: a chain of steps (``steps/``, one file each), a draw, and what ends a text.

    logits → steps, in order → softmax → draw → token

``step.py`` says what a step is, ``chain.py`` runs them, ``trace.py`` shows what each did, ``options.py`` turns what
users write into a chain.
"""
