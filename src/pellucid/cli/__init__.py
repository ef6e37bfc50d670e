"""The command line.

main.py       runs a command line; errors become messages and exit codes
command.py    what a module of ``commands/`` declares, and how commands are found
commands/     the commands, one file each
common.py     what several commands share: options, progress bars, tables, loading
sampling.py   the options of a generation, as parameters of a command
shorten.py    a plan in few lines
"""
