"""The sources of models, one file each. All files in this folder are discovered."""
