"""Cores, CPU quota and memory that the system gives to this process: one module for each system.

Each module has the functions of ``processors.Resources``.

core.py      a physical core
linux.py     files of /proc and /sys; also used on other systems, where it finds no such files
macos.py     sysctl(3) and Mach's statistics
windows.py   the Windows API
"""
