"""The block formats, one file per format or family. All files in this folder are discovered."""
