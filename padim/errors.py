"""The one exception for mistakes that a user can put right."""


class PadimError(Exception):
    """What is wrong, with the path or option, and what to do; commands print it in one line."""


class ImageError(PadimError):
    """One image that can't be used. A run names it, skips it and counts it."""
