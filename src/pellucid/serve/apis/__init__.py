"""The APIs of the server, one file each. The server serves every `Api` that a module here declares."""
