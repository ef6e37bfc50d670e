"""Being here, it puts tests/ on the import path, so that tests can import ``support``."""

from hypothesis import settings

settings.register_profile("pellucid", derandomize=True, deadline=None)
settings.load_profile("pellucid")
