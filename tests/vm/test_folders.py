import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostel.base.errors import MachineError
from hostel.base.toml import write_toml
from hostel.spec.vm import VmSpec, VmState
from hostel.vm import store


def make(name="one", **more):
    return store.create(VmSpec(name=name, kernel="/boot/k", **more))


def test_a_spec_comes_back_as_it_was_written(home):
    spec = VmSpec(
        name="a.b-c_1", cpus=3, memory=768 << 20, kernel='/odd "name"\\\n', initrd="/i", cmdline="quiet é",
        remove=True, command=["sh", "-c", "echo 'x'"], image="micro",
    )
    folder = store.create(spec)
    assert folder.spec() == spec
    assert 'memory = "768M"' in (folder.path / "vm.toml").read_text()


@given(st.text(), st.lists(st.text()), st.integers(0, 1 << 62), st.booleans())
def test_toml_that_is_written_is_toml(text, texts, number, flag):
    tables = [{"text": text, "number": number}, {"flag": flag, "texts": texts}]
    data = {"text": text, "texts": texts, "number": number, "flag": flag, "tables": tables}
    assert tomllib.loads(write_toml({**data, "none": None})) == data


def test_a_taken_name_is_told_with_what_to_do(home):
    make()
    with pytest.raises(MachineError, match="exists already.*choose another name, or 'hostel rm one'"):
        make()
    assert os.listdir(home / "vms") == ["one"]


def test_generated_names_are_valid_and_differ(home):
    names = {make("").name for _ in range(20)}
    assert len(names) == 20
    assert all("-" in name for name in names)


def test_only_one_owner(home):
    folder = make()
    fd = folder.take()
    assert folder.owned()
    with pytest.raises(MachineError, match="'one' is running"):
        folder.take()
    with pytest.raises(MachineError, match="'one' is running"):
        folder.remove()
    assert folder.spec().name == "one"
    os.close(fd)
    assert not folder.owned()
    folder.remove()
    assert not folder.path.exists()


def test_looking_does_not_take_the_lock(home):
    folder = make()
    os.close(folder.take())
    fd = os.open(folder.path / "lock", os.O_RDWR)
    from hostel.base.linux import lock

    assert not lock.is_taken(fd)
    os.close(folder.take())
    os.close(fd)


@pytest.mark.parametrize("state", ["starting", "running", "paused"])
def test_a_live_state_without_an_owner_is_death(home, state):
    folder = make()
    folder.write_state(VmState(state=state, pid=1))
    assert folder.state().state == "died"
    fd = folder.take()
    assert folder.state().state == state
    os.close(fd)


def test_leftovers_are_swept_by_the_next_of_the_name(home):
    folder = make()
    (folder.path / "vm.toml").unlink()  # an interrupted removal
    assert store.folders() == []
    assert make().spec().name == "one"


def test_a_temporary_vm_that_died_gives_its_name_back(home):
    folder = make(remove=True)
    folder.write_state(VmState(state="running", pid=1))
    assert folder.state().state == "died"
    make(cpus=2)
    assert store.find("one").spec().cpus == 2


def test_damage_is_told_with_the_file(home):
    folder = make()
    for text, what in [
        ("cpus = ", "damaged"), ("cpus = 'x'\nkernel = '/k'", "int"), ("version = 9\nkernel = '/k'", "version 9"),
        ("colour = 1\nkernel = '/k'", "colour"),
    ]:
        (folder.path / "vm.toml").write_text(text)
        with pytest.raises(MachineError, match=what) as error:
            folder.spec()
        assert "vm.toml" in str(error.value)
    (folder.path / "state.json").write_text("{]")
    assert folder.state().state == "created"


@pytest.mark.parametrize("name", ["none", "", "..", "../one", ".hidden", "a/b"])
def test_names_that_are_not_there(home, name):
    make()
    with pytest.raises(MachineError, match="there is no VM named"):
        store.find(name)


def test_no_place_for_a_vm_is_one_line_and_leaves_nothing(home, monkeypatch):
    (home).mkdir()
    (home / "vms").write_text("in the way")
    from hostel.base.errors import HostelError

    with pytest.raises(HostelError, match="vms"):
        make()


def test_no_space_leaves_nothing(home, monkeypatch):
    import errno

    from hostel.base import atomic
    from hostel.base.errors import HostelError

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    (home / "vms").mkdir(parents=True)
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(HostelError, match="no space left"):
        make()
    assert os.listdir(home / "vms") == []


def test_the_last_word_is_written_on_a_full_disk(home, monkeypatch):
    import errno

    from hostel.base import atomic
    from hostel.base.errors import HostelError

    folder = make()
    folder.write_state(VmState(state="running", pid=1))

    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "_beside", full)
    with pytest.raises(HostelError):
        folder.write_state(VmState(state="stopped"))
    folder.write_state_anyway(VmState(state="stopped", reason="poweroff"))
    assert (folder.state().state, folder.state().reason) == ("stopped", "poweroff")
