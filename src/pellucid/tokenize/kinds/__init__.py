"""The kinds of vocabulary, one file per kind; a kind is discovered by being in this folder."""
