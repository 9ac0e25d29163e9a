"""What commands answer."""

import re


def fails(result, pattern, status=125):
    """One line on standard error, that matches, and nothing else."""
    got, out, err = result
    assert got == status, result
    assert out == ""
    assert err.startswith("hostel: ") and err.count("\n") == 1, err
    assert re.search(pattern, err), err
