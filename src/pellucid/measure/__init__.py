"""Speed of a model on this machine, relative to the machine's limits: ``pellucid bench`` and ``plan --measured``."""
