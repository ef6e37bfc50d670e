"""The APIs of the server, one file each. Discovery finds every `Api` that a module declares."""
