"""The page: plain modules that the server sends as they are (``serve/apis/page.py``)."""
