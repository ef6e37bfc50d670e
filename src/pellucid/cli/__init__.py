"""The command line: ``main.py`` runs it, ``commands/`` holds the commands."""
