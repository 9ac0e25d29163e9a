"""Errors of hostel's rooms.

Every error that a person can cause derives from ``HostelError`` and reads as one line that says what is
wrong and, where it helps, what to do next. It is raised low and printed once, at the door (``cli/main``).
What a *guest* does wrong is never an exception.
"""

from errno import EIO


class HostelError(Exception):
    """Something a person can mend; ``str()`` is one line. ``status`` is the CLI's exit status."""

    status = 125


class MemoryError_(HostelError):
    """Guest memory that can't be had or doesn't exist."""


class BusError(HostelError):
    """Two devices want the same addresses."""


class ContainerError(HostelError):
    """A container that can't be made, found or changed, or a setting that this host can't hold."""


class BlockError(HostelError):
    """A disk image that can't be opened, read or written; ``errno`` is what a device tells its guest by."""

    def __init__(self, message: str, errno: int = EIO):
        super().__init__(message)
        self.errno = errno


class BootError(HostelError):
    """A kernel or initramfs that can't be booted."""


class ImageError(HostelError):
    """An image that can't be found, fetched, verified or built."""


class MachineError(HostelError):
    """A VM that can't be made, found, reached or changed."""


class NetworkError(HostelError):
    """A network that can't be made or reached as asked: a port that is taken, an address that isn't the host's."""


class UsageError(HostelError):
    """A command line or argument that makes no sense."""
