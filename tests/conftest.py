import os
import signal
import sys
from pathlib import Path

import pytest

from hostel.spec.vm import VmSpec
from hostel.vm import launch, store

for _part in ("guests", "cpu/bt", "vm", "block", "containers"):  # machine.py, what that needs, the workers, QEMU, boxes
    sys.path.insert(0, str(Path(__file__).parent / _part))

# whoever started us in the background may ignore these, and the commands of the tests would too
for _number, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGQUIT, signal.SIG_DFL),
                          (signal.SIGINT, signal.default_int_handler)):  # fmt: skip
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _default)


os.environ["HOSTEL_ZYGOTE_SECONDS"] = "0"  # homes are many and short-lived; vm/test_zygote has its own
os.environ["HOSTEL_TRANSLATIONS"] = "0"     # the same; vm/test_translations has its own


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home."""
    monkeypatch.setenv("HOSTEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def fake(home, monkeypatch):
    """Workers that start have a fake guest; whatever runs at the end is killed."""
    here = os.path.join(os.path.dirname(__file__), "vm")
    monkeypatch.setattr(launch, "WORKER", "fake_worker")
    monkeypatch.setenv("PYTHONPATH", f"{here}:{os.environ.get('PYTHONPATH', '')}")
    yield
    for folder in store.folders():
        launch.kill(folder)


@pytest.fixture
def start(fake, tmp_path):
    """``start(name)``: a running VM with the fake guest."""
    from hostel.client.vm import VM

    def start(name="one", agent=False, **more):
        folder = store.create(VmSpec(name=name, kernel="/none", agent=agent, **more))
        launch.start(folder, held=False)
        return VM(folder)

    return start


@pytest.fixture
def bare(fake, monkeypatch):
    """``bare(cpus=1)``: a running VM that is the translator and a guest of a few instructions (bare_worker)."""
    from hostel.client.vm import VM

    monkeypatch.setattr(launch, "WORKER", "bare_worker")

    def start(name="bare", **more):
        folder = store.create(VmSpec(name=name, kernel="/none", agent=False, **more))
        launch.start(folder, held=False)
        return VM(folder)

    return start


@pytest.fixture(scope="session")
def micro():
    """The micro image of this machine, made if need be; where that can't be, its tests are skipped."""
    from hostel.base.errors import HostelError
    from hostel.images import store as images

    try:
        return images.ensure("micro")
    except HostelError as error:
        pytest.skip(f"no micro image: {error}")


@pytest.fixture
def guests(micro, home):
    """A home with the micro image and no VMs; whatever runs at the end is killed."""
    home.mkdir()
    (home / "images").symlink_to(micro.folder.parent)
    yield
    for folder in store.folders():
        launch.kill(folder)


@pytest.fixture(scope="session")
def box_images(tmp_path_factory):
    """A folder of images with the OCI image ``box`` in it; tests that need it are skipped where it can't run."""
    import boxes

    from hostel.images.oci import archive
    from hostel.images.oci.store import Store

    if os.geteuid():
        pytest.skip("containers with cards and limits take root here")
    if not boxes.busybox():
        pytest.skip("no static busybox (apt install busybox-static)")
    images = tmp_path_factory.mktemp("images")
    boxes.archive(images / "box.tar")
    with open(images / "box.tar", "rb") as file:
        archive.load(Store(images / "oci"), file, "box.tar")
    return images


@pytest.fixture
def box(box_images, home):
    """A home with the image ``box`` and no containers; what runs at the end is removed."""
    from hostel.client.container import Container

    home.mkdir()
    (home / "images").symlink_to(box_images)
    yield "box"
    for container in Container.list():
        container.rm(force=True)


@pytest.fixture
def box_and_micro(box, box_images, micro):
    """The same with the micro image, and VMs."""
    if not (box_images / "micro").exists():
        (box_images / "micro").symlink_to(micro.folder)
    yield "box"
    for folder in store.folders():
        launch.kill(folder)
