"""The kinds of vocabulary, one file per kind. The package discovers all files in this folder."""
