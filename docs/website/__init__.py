"""The site of the documentation: ``make docs``.

__main__.py      builds the site
pages.py         the Markdown files of the repository, their places in the site, the navigation
links.py         links of a Markdown text
commands.py      the command reference, from the help of the commands
reference.py     the API reference, from docstrings
docstrings.py    docstrings in reStructuredText
llms.py          llms.txt and llms-full.txt: the site for language models
conf.py          Sphinx's configuration
extension.py     Sphinx's extension: docstrings, signatures and members in the API reference
check.py         checks of the finished site
"""
