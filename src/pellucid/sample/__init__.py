"""From logits to a token: a chain of steps (one file each), and the strings that end a text."""
