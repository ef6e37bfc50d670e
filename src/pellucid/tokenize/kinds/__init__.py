"""The kinds of vocabulary, related kinds in one file. The package discovers all files in this folder."""
