"""How Sphinx makes the site of these pages: ``just docs``.

Nothing is loaded from another host, neither while it is made nor when it is read.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import mdservice  # noqa: E402

project = "mdservice"
version = release = mdservice.__version__
html_title = f"mdservice {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_hooks"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["examples"]

html_theme = "furo"
html_static_path = ["theme"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 4
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!mdservice).*"),  # other projects' names
    # Types of arguments that nobody has to make.
    ("py:class", r"mdservice\.client\.(intake\.Intake|reader\.(Follower|_Reader))"),
    ("py:class", r"mdservice\.feed\.alpaca\.link\.AlpacaLink"),
    ("py:class", r"mdservice\.model\.events\.RecordBatch"),
    ("py:class", r"mdservice\.redis_io\.names\.Instance"),
    ("py:class", r"mdservice\.runtime\.network\.HttpClient"),
    ("py:class", r"mdservice\.positions\.sources\._Result"),
    ("py:class", r"mdservice\.positions\.trading_stream\.TradingLink"),
    ("py:(class|obj)", r"mdservice\.model\.kinds\..*"),
    ("py:class", r"mdservice\.pnl\.(holding|day)\..*"),
    ("py:(class|obj)", r"mdservice\.pnl\.(engine|rows)\._T"),
    ("py:func", r"mdservice\.pnl\.last_sale\.updates_last"),
    ("py:class", r"mdservice\.model\.market\.Market"),
    ("py:class", r"mdservice\.model\.quote\._Read"),
    (
        "py:class",
        r"mdservice\.simulator\.(bars|feeds|http|market|memory)\..*",
    ),
    ("py:class", r"mdservice\.simulator\.(orders|paper_account|positions|trade_updates)\..*"),
    ("py:class", r"mdservice\.simulator\.(stock_records|tape)\..*"),
    ("py:(class|obj)", r"mdservice\.simulator\.(kinds|rest_history|session|stocks|wire)\..*"),
]

autodoc_member_order = "bysource"
napoleon_use_ivar = True  # one list of a class's fields
toc_object_entries_show_parents = "hide"
