"""One file per kind of vocabulary. A kind is known by being in this folder."""
