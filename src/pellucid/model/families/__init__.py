"""The families of models, one file for a lineage. No code outside this folder depends on the name of a family."""
