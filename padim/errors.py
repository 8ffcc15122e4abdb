"""The one exception for mistakes that a user can put right."""

from __future__ import annotations

import errno

# Too many open files, no memory, a share or disk that does not answer.
_OF_MACHINE = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
    *(errno.EIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENOTCONN),
)


class PadimError(Exception):
    """What is wrong, with the path or option, and what to do; commands print it in one line."""


def printable(text: str) -> str:
    """Text of which a terminal obeys nothing: control characters are escaped, but for the ends of lines."""
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)


def first_line(error: Exception) -> str:
    """What another library says of an error, as far as it fits into ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def not_understood(path: object, reason: object) -> PadimError:
    """The error for a model file whose metadata make no sense to this version."""
    return PadimError(f"{path} is a damaged model, or one of a newer padim: {reason}")


class CheckpointError(PadimError):
    """A checkpoint that a training can't go on from: it is damaged, or of another training."""


class ImageError(PadimError):
    """One image that can't be used. A run names it, skips it and counts it."""

    @property
    def may_pass(self) -> bool:
        """Whether it is the machine that failed rather than the image, as when too many files are open."""
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)

    @property
    def of_machine(self) -> bool:
        """Whether it may pass and says nothing of this image: the others can meet it as well."""
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _OF_MACHINE)
