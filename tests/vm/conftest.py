import pytest
from copies import all_gone, left

from hostel import VM


@pytest.fixture
def clean(guests, home):
    """A home in which nothing is left at the end, and of which no process."""
    yield
    for vm in VM.list():
        vm.rm(force=True)
    assert left(home) == []
    all_gone(home)
