"""Shares as a person writes them."""

import os

import pytest

from hostel.base.errors import UsageError
from hostel.spec.share import MAX_SHARES, ShareSpec, check_shares, parse_share


def test_what_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    os.symlink("a", tmp_path / "link")
    written = ("a:/x/", "link:/y//z:ro,owners=host", f"{tmp_path}:/w:cache=none,rw")
    shares = check_shares([parse_share(text) for text in written])
    assert shares == [
        ShareSpec(source=str(tmp_path / "a"), target="/x", tag="hostel0"),
        ShareSpec(source=str(tmp_path / "a"), target="/y/z", tag="hostel1", readonly=True, owners="host"),
        ShareSpec(source=str(tmp_path), target="/w", tag="hostel2", cache="none"),
    ]


@pytest.mark.parametrize("text, why", [
    ("/tmp", "is no share"), (":/x", "is no share"), ("/tmp:", "is no share"), ("/tmp:x", "from the root"),
    ("/tmp:/", "name a folder"), ("/tmp:/..", "name a folder"), ("/tmp:/a/../..", "name a folder"),
    ("/tmp:/x:rx", "'rx' is none of ro"), ("/tmp:/x:cache=never", "is none of"), ("/tmp:/x:ro,", "'' is none of"),
])  # fmt: skip
def test_nonsense(text, why):
    with pytest.raises(UsageError, match=why):
        parse_share(text)


def test_what_cannot_be_shared(tmp_path):
    (tmp_path / "file").write_text("")
    for source, why in (("none", "No such file"), ("file", "Not a directory")):
        with pytest.raises(UsageError, match=why):
            check_shares([parse_share(f"{tmp_path / source}:/x")])
    with pytest.raises(UsageError, match="both be /x"):
        check_shares([parse_share(f"{tmp_path}:/x"), parse_share(f"{tmp_path}:/x/")])
    with pytest.raises(UsageError, match="at most 8"):
        check_shares([parse_share(f"{tmp_path}:/x{i}") for i in range(MAX_SHARES + 1)])
