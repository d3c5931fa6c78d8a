"""Sphinx's settings for the site; `build.py` gathers its pages and calls it."""

from distdl import __version__

project = "distdl"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"distdl {__version__}"
html_show_copyright = False
html_copy_source = False

myst_heading_anchors = 6  # a link to a heading is GitHub's
suppress_warnings: list[str] = []  # none: `build.py` makes errors of them

default_role = "code"  # `words` in a docstring are code, as in Markdown
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch are written in its own way
