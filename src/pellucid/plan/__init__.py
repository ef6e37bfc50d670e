"""From a spec to a plan: the stages of the pipeline one by one (``embedding.py`` ... ``project.py``)."""
