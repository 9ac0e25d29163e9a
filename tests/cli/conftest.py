import pytest

from hostel.cli.main import main


@pytest.fixture
def typed(capfd):
    """``typed(words...)``: what the command gives, in this process: status, stdout, stderr."""

    def typed(*words):
        capfd.readouterr()
        status = main([*map(str, words)])
        out, err = capfd.readouterr()
        return status, out, err

    return typed
