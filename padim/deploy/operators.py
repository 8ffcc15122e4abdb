"""Which operators an ONNX file computes with, found before it is loaded: no export has a loop.

Of protobuf's wire format only the lengths are followed, so that no tensor is read, however large it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from padim.errors import PadimError

# Numbers of fields in onnx.proto.
_GRAPH, _FUNCTIONS = 7, 25  # of a model
_NODE = 1  # of a graph
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of a node
_SUBGRAPH, _SUBGRAPHS = 6, 11  # of an attribute

_DOMAINS = ("", "ai.onnx", "com.microsoft")  # the last is ONNX Runtime's own

# Exports have some ten thousand fields.
_MOST_FIELDS = 1_000_000


def check_operators(path: Path) -> None:
    """Make sure that the graph of a file runs straight from its inputs to its outputs, as exports do.

    Raises:
        PadimError: it has control flow, functions or operators that no export has.
        OSError, ValueError: it can't be read, or is damaged.
    """
    with path.open("rb") as file:
        message = _Fields(file)
        for field, begin, end in message.between(0, path.stat().st_size):
            if field == _FUNCTIONS:
                raise PadimError(f"{path} is not what padim-export writes: it has functions of its own")
            if field == _GRAPH:
                for part, first, last in message.between(begin, end):
                    problem = _problem(message, first, last) if part == _NODE else None
                    if problem:
                        raise PadimError(f"{path} is not what padim-export writes: {problem}")


def _problem(message: _Fields, begin: int, end: int) -> str | None:
    """What no export has about a node, if anything."""
    names = {_OPERATOR: "", _DOMAIN: ""}
    inside = False
    for field, first, last in message.between(begin, end):
        if field in names:
            names[field] = message.text(first, last)
        if field == _ATTRIBUTE:
            inside = inside or any(part in (_SUBGRAPH, _SUBGRAPHS) for part, *_ in message.between(first, last))
    if inside:
        return f"its operator {names[_OPERATOR]} has a graph inside"
    return None if names[_DOMAIN] in _DOMAINS else f"its operator {names[_OPERATOR]} is of {names[_DOMAIN]}"


class _Fields:
    """The fields of a file in protobuf's wire format."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MOST_FIELDS

    def between(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, begin and end of the fields that have a length, of the message between two places.

        Raises:
            ValueError: it is no message, or has more fields than any export.
        """
        place = begin
        while place < end:
            self._left -= 1
            self._file.seek(place)
            tag = self._number()
            kind = tag & 7
            if kind == 0:
                self._number()
            length = self._number() if kind == 2 else {0: 0, 1: 8, 5: 4}.get(kind, end)
            first = self._file.tell()
            place = first + length
            if place > end or not self._left:
                raise ValueError("no message of protobuf")
            if kind == 2:
                yield tag >> 3, first, place

    def text(self, begin: int, end: int) -> str:
        """The text of a field, as much of it as a name can have."""
        self._file.seek(begin)
        return self._file.read(min(end - begin, 100)).decode(errors="replace")

    def _number(self) -> int:
        """A number of up to ten bytes, of seven bits each, the lowest first."""
        number = 0
        for shift in range(0, 70, 7):
            (byte,) = self._file.read(1) or b"\x80"
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("no number of protobuf")
