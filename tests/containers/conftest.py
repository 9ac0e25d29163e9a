"""``bundle`` and ``oci``: a bundle to change and run, and the runtime with a root of its own."""

import pytest
from tests.containers.bundles import Bundle, Oci, root_only


@pytest.fixture
def bundle(tmp_path):
    root_only()
    return Bundle(tmp_path / "bundle")


@pytest.fixture
def oci(tmp_path):
    root_only()
    runtime = Oci(tmp_path / "oci")
    yield runtime
    if runtime.root.exists():
        for folder in runtime.root.iterdir():
            if not folder.name.startswith("."):
                runtime("delete", "--force", folder.name, check=False)
