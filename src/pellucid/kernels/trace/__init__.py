"""Operations of watched plans, which copy or change values of a step for some rows."""
