"""Operations on rows: norms, activations, rotary positions, embeddings, elementwise ones; the machine's roofs."""
