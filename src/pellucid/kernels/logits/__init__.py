"""Operations on the logits of one token: top-k, softmax, masks."""
