"""Tables as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from padim.errors import printable


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column flush left, the others flush right."""
    rows = [[*map(printable, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
