"""Operations on rows: norms, activations, positions, embeddings, elementwise, pooling; the machine's speed limits."""
