"""What can go wrong while measuring; printed as one line."""


class BenchError(Exception):
    """A peer didn't start, didn't answer in time, or gave a wrong answer."""


class Wrong(BenchError):
    """A program failed on a peer, or its answer differs from others': that costs the row, not the run."""


class Missing(BenchError):
    """Something to compare with isn't installed; the message says how to get it."""
