"""The loop that every thread runs over a program, and the barrier where threads wait for each other."""
