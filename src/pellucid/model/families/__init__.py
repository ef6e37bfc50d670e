"""One file a family. Nothing outside this folder knows a family's name."""
