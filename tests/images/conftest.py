import shutil

import pytest
from mirror import Mirror

from hostel.images import openpgp
from hostel.images.debian import Archive
from hostel.images.fetch import Fetcher
from hostel.images.sources import Source


@pytest.fixture
def mirror():
    made = Mirror()
    made.add_image_packages()
    made.publish()
    yield made
    made.close()


@pytest.fixture
def archive(mirror, tmp_path):
    """Makes archives on the mirror that try three times without a pause."""
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(mirror.keyring)

    def make(**options):
        chosen = options.pop("chosen", (Source(mirror.url, "bookworm"),))
        options.setdefault("cache", tmp_path / "cache")
        return Archive(chosen, options.pop("keyring", keyring), fetcher=Fetcher({}, pauses=(0, 0)), **options)

    return make


@pytest.fixture(params=["gpgv", "library"])
def verifier(request, monkeypatch):
    """Both judges of signatures; gpgv where the host has it."""
    if request.param == "library":
        monkeypatch.setattr(openpgp.shutil, "which", lambda name: None)
    elif not shutil.which("gpgv"):
        return "library"
    return request.param
