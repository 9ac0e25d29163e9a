"""The C library's heap."""

import ctypes


def trim() -> None:
    """Give back to the kernel what a big need that has passed left behind."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(0)
