"""Write the parts of the reference that come from the code, and the drawn picture, anew."""

from __future__ import annotations

from docs.generate.costs import costs
from docs.generate.pages import DRAWN, PAGES, filled

made = {page: filled(page.read_text()) for page in PAGES} | {DRAWN: costs()}
for file, text in made.items():
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
        print(f"{file.name} has changed")
