"""Write the tables of the catalogue into pages: python -m flows.catalogue PAGE …; without a page, print them."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.catalogue.markdown import TABLES, rewrite


def main(pages: list[str]) -> int:
    """Exit status 0, or 2 after a line about a page that cannot be rewritten."""
    if not pages:
        print("\n\n".join(f"{name}\n\n{write()}" for name, write in TABLES.items()))
    for page in pages:
        try:
            before = Path(page).read_text(encoding="utf-8")
            after = rewrite(before)
            Path(page).write_text(after, encoding="utf-8")
        except (OSError, ValueError) as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 2
        print(f"{page}: {'unchanged' if before == after else 'rewritten'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
