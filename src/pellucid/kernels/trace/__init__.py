"""Operations that copy values of some rows of a step (traces) or change them (edits)."""
