"""Model files: readers, packing for the kernels, the local store, and the sources of models."""
