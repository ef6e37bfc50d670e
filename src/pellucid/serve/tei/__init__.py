"""The paths of Hugging Face's text-embeddings-inference (TEI): request and response bodies, without HTTP."""
