"""Looking at figures as they are written."""

import matplotlib.figure


def watch_figures(monkeypatch):
    """The list that figures are put in as they are written, at a resolution that takes less time."""
    seen = []
    write = matplotlib.figure.Figure.savefig

    def watch(self, *arguments, **options):
        seen.append(self)
        return write(self, *arguments, **options | {"dpi": 40})

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", watch)
    return seen
