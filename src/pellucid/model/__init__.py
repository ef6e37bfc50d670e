"""What a model is (``spec.py``), and one file a family that reads it from a checkpoint (``families/``)."""
