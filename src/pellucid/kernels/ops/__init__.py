"""Operations on rows: norms, activations, rotary positions, embeddings, elementwise; the machine's speed limits."""
