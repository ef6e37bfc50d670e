"""The block formats, one file each or one for a few that are alike. They are discovered by being in this folder."""
