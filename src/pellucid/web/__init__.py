"""The page: plain JavaScript modules, which the server sends unchanged and a report contains (``bundle.py``)."""
