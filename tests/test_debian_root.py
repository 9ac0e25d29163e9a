"""The Debian root of benchmarks and real guests: the archive made of the tar, and what is said when none can be."""

import io
import tarfile

import pytest
from bench import debian_root
from bench.errors import BenchError, Missing
from bench.guest import find_file


def test_the_archive(tmp_path):
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        for name, kind, target in [
            ("./", tarfile.DIRTYPE, ""), ("./etc/", tarfile.DIRTYPE, ""), ("./dev/null", tarfile.CHRTYPE, ""),
            ("./usr/bin/sh", tarfile.SYMTYPE, "dash"), ("./usr/bin/perl5", tarfile.LNKTYPE, "./usr/bin/perl"),
            ("./../out", tarfile.REGTYPE, ""),
        ]:  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
        entry = tarfile.TarInfo("./etc/passwd")
        entry.size, entry.mode = 5, 0o640
        archive.addfile(entry, io.BytesIO(b"root:"))
    with tarfile.open(tmp_path / "root.tar") as archive:
        made = b"".join(debian_root.records(archive))
    assert find_file(made, "etc/passwd") == b"root:"
    assert find_file(made, "usr/bin/sh") == b"dash"
    assert find_file(made, "usr/bin/perl5") == b"/usr/bin/perl"
    assert find_file(made, "init").startswith(b"\x7fELF")
    for absent in ("dev/null", "../out"):
        with pytest.raises(BenchError):
            find_file(made, absent)


def test_without_mmdebstrap(home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing, match="apt install mmdebstrap"):
        debian_root.initramfs(["busybox"])
    assert not [path for path in (home / "cache" / "roots").iterdir() if not path.name.endswith(".lock")]


def test_a_bootstrap_that_fails(home, tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "mmdebstrap"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'I: working' >&2\necho 'E: no such package' >&2\nexit 25\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/bin:/usr/bin")
    with pytest.raises(BenchError, match="mmdebstrap: E: no such package"):
        debian_root.initramfs(["busybox"])
    assert not [path for path in (home / "cache" / "roots").iterdir() if not path.name.endswith(".lock")]
