import pytest
from oci_layouts import Layout, start_registry

from hostel.images.oci.store import Store


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """HOST:PORT of a registry that lets everybody do everything."""
    process, address = start_registry(tmp_path_factory.mktemp("registry"))
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    return Store()


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "layout")
