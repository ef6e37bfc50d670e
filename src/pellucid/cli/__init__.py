"""The command line.

main.py            runs a command line; errors become messages and exit codes
command.py         what a module of ``commands/`` declares, and how commands are found
commands/          the commands, one file each
common.py          what several commands share: options, progress bars, opening of files, tables
option_groups.py   a parameter that stands for several options
load_options.py    the options of every command that loads a model
sampling.py        the options of a generation, as parameters of a command
shorten.py         a plan in few lines
"""
