"""Cores, CPU quota and memory that the system gives to this process: one module for each system.

Each module has the functions of ``processors.Resources``.
"""
