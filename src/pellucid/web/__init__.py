"""The page: plain JavaScript modules, which the server sends unchanged and a report contains (``bundle.py``).

app.js     what is shown: the models of a server, or a recorded run
state/     the place (the one selection), the address, the text and its branches
server/    requests, the cache of answers, recorded files and their limits
picture/   the picture: layout, values, columns, nearer scenes, one number with its formula; export, pins, costs
panels/    each stage in depth, below the picture; ``panels.js`` lists them
words/     tour, examples, explanations, glossary
page/      header, form, the text as people read it; light, dark and presentation mode
parts/     canvas drawing, patterns, tables, keys, texts
graph/     attribution graphs: reading, layout, drawing, pinned nodes and groups
widgets/   components of the page in notebooks
vendor/    Preact with htm, unmodified
"""
