"""The command line.

main.py            runs a command line; errors become messages and exit codes
command.py         declarations of commands, and their discovery
commands/          the commands, one file each
common.py          shared parts of commands: options, progress bars, opening of files, tables
option_groups.py   a parameter that stands for several options
load_options.py    the options of every command that loads a model
sampling.py        the generation options, as parameters of a command
shorten.py         a plan as a short table: equal blocks share a line
"""
