"""The sources of models, one file each. A ``Source`` is discovered by being in this folder."""
