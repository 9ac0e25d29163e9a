import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # native.py, instructions.py
sys.path.insert(0, str(Path(__file__).parents[2] / "guests"))  # machine.py


@pytest.fixture(scope="module", autouse=True)
def verified():
    """A sample of the code that engines emit here is proved harmless; what isn't ends the guest (cpu/bt/verify). Real
    guests elsewhere would be several times as slow by it: they have tests of their own for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTEL_VERIFY_CODE", os.environ.get("HOSTEL_VERIFY_CODE", "16"))
        yield
