"""What kernels are made with: declaration, compilation, the cache of object code, records, instruction sets."""
