"""The command line.

main.py              runs a command line; errors become messages and exit codes
command.py           declarations of commands, and their discovery
commands/            the commands, one file each
common.py            shared parts of commands: options, progress bars, opening of files, tables
prompts.py           the prompt of run and chat: words, files, standard input; as a message or as text
conversation.py      a conversation in the terminal
other_words.py       the names of other engines' options and commands
strict_command.py    a command that refuses empty values of its options
translation.py       replaces these names before Typer reads a command line
completion.py        completion of commands, options and models in a shell
server_client.py     requests to a running server
catalogue_facts.py   who published a model of the catalogue, and what its packages are
output_file.py       output files: checked before the work, written whole or not at all
option_groups.py     a parameter that stands for several options
loading.py           the options of commands that load a model, and loading with progress bars
sampling_options.py  the generation options, as parameters of a command
serving_options.py   the options of a server
cluster_options.py   the options of commands that run models on a cluster
bench_serve.py       ``pellucid bench serve``
plan_layouts.py      ``pellucid plan --machines``
planning.py          the model and the machines of ``pellucid plan --machines`` and ``pellucid capacity``
"""
