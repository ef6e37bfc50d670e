"""The kinds of vocabulary, one file per kind. All files in this folder are discovered."""
