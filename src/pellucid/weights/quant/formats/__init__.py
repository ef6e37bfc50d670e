"""The block formats, by kind. All files in this folder are discovered."""
