"""How Sphinx makes the site of these pages: ``just docs``.

Nothing is loaded from another host, neither while it is made nor when it is read.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import mdservice  # noqa: E402

project = "mdservice"
author = "the authors of mdservice"
version = release = mdservice.__version__
html_title = f"mdservice {release}"
copyright = "MIT licence"  # noqa: A001 - Sphinx's name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_hooks"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["examples"]

html_theme = "furo"
html_show_sourcelink = False
html_copy_source = False
myst_heading_anchors = 4
nitpicky = True
nitpick_ignore_regex = [
    (".*", r"(?!mdservice).*"),  # other projects' names
    # What the handles that are yielded to a program are made of.
    ("py:class", r"mdservice\.(pnl\.holding|prices\.(intake|follower)|topology)\..*"),
    ("py:class", r"mdservice\.simulator\.(account|control|http|market|memory)\..*"),
    ("py:class", r"mdservice\.simulator\.(rest\.query|session|trader|wire)\..*"),
]

autodoc_member_order = "bysource"

# The toctree of the first page has globs for pages that come later.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: "didn't match any documents" not in record.msg
)
