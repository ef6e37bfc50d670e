"""Characters for tests."""

# Characters of every kind that are newer than Unicode 16, and a letter whose category changed after Unicode 16.
CHANGED = (
    "\u0295\u0558\u05c8\u05c9\u088f\ua7d2\u1acf\u208f\u2b96\U00010ec7\U00016ea0\U0001f8d0\U0001faea\U000323b0\U0003d888"
)
