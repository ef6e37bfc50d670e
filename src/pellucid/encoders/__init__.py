"""The tasks of encoders. Each is a function of a model, and uses ``encode``, so it also runs on a cluster."""
