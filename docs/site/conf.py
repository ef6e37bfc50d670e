"""Sphinx's configuration of the site. ``build.py`` runs Sphinx on the pages that it stages."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pages
import reference

import pellucid

project, author, release = "Pellucid", "Pellucid contributors", pellucid.__version__
copyright = "Pellucid contributors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "extension"]

# Every type in a signature needs an entry in the reference.
nitpicky = True
nitpick_ignore = [("py:class", name) for name in reference.INTERNAL]
nitpick_ignore_regex = [(r"py:.*", r"(?!pellucid\.).*")]

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4
highlight_language = "text"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "Pellucid"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
templates_path = ["templates"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_favicon = html_logo = str(pages.ROOT / "src" / "pellucid" / "web" / "icon.svg")
html_theme_options = {
    "top_of_page_buttons": [],
    "dark_css_variables": {
        "color-brand-primary": "#6db5ea",
        "color-brand-content": "#6db5ea",
        "color-brand-visited": "#6db5ea",
        "color-api-name": "#6db5ea",
        "color-foreground-primary": "#e6edf0",
        "color-background-primary": "#14191c",
        "color-sidebar-background": "#0d1113",
    },
    "light_css_variables": {
        "color-brand-primary": "#1d5f91",
        "color-brand-content": "#1d5f91",
        "color-brand-visited": "#1d5f91",
        "color-api-name": "#1d5f91",
        "color-foreground-primary": "#1b2226",
        "color-sidebar-background": "#f6f7f8",
    },
}
