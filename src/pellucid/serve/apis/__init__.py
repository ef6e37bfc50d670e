"""The APIs of the server, and their request and response bodies. Discovery finds every `Api` that a module declares."""
