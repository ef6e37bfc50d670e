"""Sphinx's configuration. ``__main__.py`` runs Sphinx on the staged pages."""

from __future__ import annotations

import pellucid
from website import pages, reference

project, author, release = "Pellucid", "Pellucid contributors", pellucid.__version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "website.extension"]

myst_heading_anchors = 4
highlight_language = "text"
smartquotes = False  # "--json" in a help text is no dash

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# Every type of Pellucid in a signature needs an entry in the reference.
nitpicky = True
nitpick_ignore = [("py:class", name) for name in reference.INTERNAL]
nitpick_ignore_regex = [(r"py:.*", r"(?!pellucid\.).*")]

html_theme = "furo"
html_title = "Pellucid"
html_favicon = html_logo = str(pages.ROOT / "src" / "pellucid" / "web" / "icon.svg")
html_static_path = ["static"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_copy_source = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "github-dark"
# The colours of the page in the browser (src/pellucid/web/style.css).
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {
        **dict.fromkeys(("color-brand-primary", "color-brand-content", "color-brand-visited"), "#1d5f91"),
        **dict.fromkeys(("color-api-name", "color-api-pre-name"), "#1d5f91"),
        "color-foreground-primary": "#1b2226",
        "color-code-background": "#f6f7f8",
        "color-sidebar-background": "#f6f7f8",
    },
    "dark_css_variables": {
        **dict.fromkeys(("color-brand-primary", "color-brand-content", "color-brand-visited"), "#6db5ea"),
        **dict.fromkeys(("color-api-name", "color-api-pre-name"), "#6db5ea"),
        "color-foreground-primary": "#e6edf0",
        "color-background-primary": "#14191c",
        "color-sidebar-background": "#0d1113",
    },
}
