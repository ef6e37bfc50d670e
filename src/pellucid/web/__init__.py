"""The page: plain modules that the server sends as they are, or that a report holds (``bundle.py``)."""
