"""Operations on rows: norms, activations, rotary positions, embeddings, elementwise, pooling; the machine's speed limits."""
