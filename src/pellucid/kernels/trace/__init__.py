"""Operations of watched plans: they copy values of a step out, or change them, for some rows."""
