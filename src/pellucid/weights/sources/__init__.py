"""Sources of model files.

source.py     the interface of a source, the known sources, and progress callbacks
schemes/      the sources, one file each

http_download.py    pages and downloads over HTTP
package_index.py, index_settings.py    wheels in package indexes, and the settings of pip and uv
hub.py        the Hugging Face hub and its cache
zip_entries.py    copies an entry out of an archive

A spec is ``scheme:rest``. Each module of ``schemes/`` has a ``SOURCE`` that interprets ``rest``. A new source needs
only a new file.
"""
