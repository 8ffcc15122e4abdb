"""Contact sheets: what a detector makes of its training images, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from padim.storage.files import atomic_write

_LINE = 14  # pixels, for the names of the columns


def save_contact_sheet(path: Path, rows: Sequence[Mapping[str, Image.Image]]) -> None:
    """Write pictures of one size as a table with named columns.

    Raises:
        PadimError: the file can't be written.
    """
    width, height = next(iter(rows[0].values())).size
    sheet = Image.new("RGB", (width * len(rows[0]), _LINE + height * len(rows)), "white")
    for column, name in enumerate(rows[0]):
        ImageDraw.Draw(sheet).text((column * width + 2, 1), name, fill="black")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row.values()):
            sheet.paste(picture, (column * width, _LINE + number * height))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
