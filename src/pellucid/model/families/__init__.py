"""The families of models, one file each. No code outside this folder depends on the name of a family."""
