"""Helpers that the other folders share.

access_lists.py        who else can change a file on Windows
checks.py              checks of user values by type and range
display.py             HTML tables and heat maps
garbage_collection.py  delays or advances garbage collection
macos.py               calls of macOS: sysctl, memory statistics
paths.py               folders for files that outlive a process
probabilities.py       probabilities of a few logits
registry.py            discovery of the objects that a package's modules declare
text_file.py           the texts of a file, a folder or a list, as a stream
trusted_files.py       files that are used without further checks: compiled kernels, parsed vocabularies
uncallable.py          a module that says what to call instead
waits.py               waits that Ctrl-C interrupts on every system
windows.py             calls of the Windows API: processors, memory, job objects
"""
