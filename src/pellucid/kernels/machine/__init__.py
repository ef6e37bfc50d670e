"""The loop that every thread runs over a program, and probes of what the machine can do."""
