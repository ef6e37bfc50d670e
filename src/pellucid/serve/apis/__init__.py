"""The APIs that the server speaks, one file each. A module here that declares an `Api` is served."""
