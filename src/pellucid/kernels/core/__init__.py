"""Declaration, compilation, caching and linking of kernels."""
