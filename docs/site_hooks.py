"""What Sphinx does not do by itself for these pages; an extension of the site's."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import attrs
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import GoogleDocstring

__all__ = ["setup"]

_LINK: Final = re.compile(r"\]\((\.\./[^)#\s]+)")
_ELSEWHERE: Final = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files beside ``docs`` and the pages that include them."""

_HANDLES: Final = {"Prices", "Service", "Simulator", "FakeLink"}
"""Classes that are given to a program and not made by it: what they are made of is nobody's."""

_CONTENTS: Final = {"ADRs/README": "0*", "how-to/index": "*", "operations/index": "*"}
"""Pages whose own list of links is what a reader on GitHub needs, and what belongs below them."""

_LOADED: Final = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//"""
    r"""|<link\b[^>]*\bhref=["'](?:https?:)?//"""
)
_LOADED_BY_STYLE: Final = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)
    app.connect("source-read", _lead_to_pages)
    app.connect("build-finished", _refuse_other_hosts)
    app.connect("autodoc-process-signature", _hide_constructor)
    app.connect("autodoc-process-docstring", _add_fields, priority=400)  # before napoleon
    # Else the first words of a property would be its type, where a colon follows them.
    GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end  # type: ignore[method-assign]  # noqa: SLF001
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _add_contents(_app: Sphinx, page: str, source: list[str]) -> None:
    pages = _CONTENTS.get(page)
    if pages is not None and "{toctree}" not in source[0]:
        source[0] += f"\n```{{toctree}}\n:glob:\n:hidden:\n\n{pages}\n```\n"


def _lead_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """A link to a file beside ``docs``, right on GitHub, leads to the page that includes it."""
    folder = (app.srcdir / page).parent

    def lead(found: re.Match[str]) -> str:
        beside = Path(os.path.normpath(folder / found[1]))
        name = _ELSEWHERE.get(beside.name) if beside.parent == app.srcdir.parent else None
        return found[0] if name is None else f"]({os.path.relpath(app.srcdir / name, folder)}"

    source[0] = _LINK.sub(lead, source[0])


def _hide_constructor(
    _app: Sphinx,
    kind: str,
    name: str,
    _value: object,
    _options: object,
    _signature: str | None,
    _returns: str | None,
) -> tuple[str, None] | None:
    hidden = kind == "class" and name.rpartition(".")[2] in _HANDLES
    return ("", None) if hidden else None


def _add_fields(
    _app: Sphinx, kind: str, _name: str, value: object, _options: object, lines: list[str]
) -> None:
    """List the fields of a class of the status with what they mean, as it is declared there."""
    if kind != "class" or not attrs.has(value):
        return
    fields = [field for field in attrs.fields(value) if "meaning" in field.metadata]
    if fields:
        lines += ["", "Attributes:"]
        for field in fields:
            lines.append(f"    {field.name}: {field.metadata['meaning'].replace('`', '``')}")
        lines.append("")


def _refuse_other_hosts(app: Sphinx, error: Exception | None) -> None:
    """Nothing of a page is loaded from elsewhere: it is read on machines without a way out."""
    if error is not None or app.builder.format != "html":
        return
    for pattern, suffix in ((_LOADED, "html"), (_LOADED_BY_STYLE, "css")):
        for file in app.outdir.rglob(f"*.{suffix}"):
            found = pattern.search(file.read_text())
            if found is not None:
                raise ExtensionError(f"{file} loads something from another host: {found[0]}")
