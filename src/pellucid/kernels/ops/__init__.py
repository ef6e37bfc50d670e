"""Operations on rows: norms, activations, rotary positions, embeddings, elementwise ones."""
