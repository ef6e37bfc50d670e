"""The families of models, one file each. No code outside this folder knows a family's name."""
