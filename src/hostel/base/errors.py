"""Errors of hostel's rooms.

Every error that a person can cause derives from ``HostelError`` and reads as one line that says what is
wrong and, where it helps, what to do next. It is raised low and printed once, at the door (``cli/main``).
What a *guest* does wrong is never an exception.
"""


class HostelError(Exception):
    """Something a person can mend; ``str()`` is one line. ``status`` is the CLI's exit status."""

    status = 125


class MemoryError_(HostelError):
    """Guest memory that can't be had or doesn't exist."""


class BusError(HostelError):
    """Two devices want the same addresses."""


class BootError(HostelError):
    """A kernel or initramfs that can't be booted."""


class ImageError(HostelError):
    """An image that can't be found, fetched, verified or built."""


class MachineError(HostelError):
    """A VM that can't be made, found, reached or changed."""


class UsageError(HostelError):
    """A command line or argument that makes no sense."""
