"""What a folder that a VM shares with its host is (``ShareSpec``, in ``vm.toml``)."""

import os
import posixpath
import stat

import msgspec

from hostel.base.errors import UsageError

MAX_SHARES = 8                 # each may have an eighth of the worker's descriptors
OWNERS = ("guest", "host")
CACHES = ("none", "auto", "always")


class ShareSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A folder of the host's at a place in the guest."""

    source: str                 # on the host, absolute
    target: str                 # in the guest, absolute
    tag: str                    # by which the guest mounts it
    readonly: bool = False
    owners: str = "guest"       # guest: as it sets them, kept in extended attributes where need be; host: all root's
    cache: str = "auto"         # auto: the host's changes are seen within a second; none: at once; always: perhaps not


def parse_share(text: str) -> ShareSpec:
    """A share as ``-v`` has it, without a tag: ``HOSTDIR:GUESTDIR[:OPTION[,OPTION...]]``."""
    source, colon, rest = text.partition(":")
    target, _, options = rest.partition(":")
    if not source or not target:
        raise UsageError(f"'{text}' is no share: write HOSTDIR:GUESTDIR[:ro]")
    share = ShareSpec(source=source, target=check_target(target), tag="")
    for option in options.split(",") if options else ():
        key, _, value = option.partition("=")
        if option in ("ro", "rw"):
            share.readonly = option == "ro"
        elif key == "owners" and value in OWNERS:
            share.owners = value
        elif key == "cache" and value in CACHES:
            share.cache = value
        else:
            raise UsageError(
                f"-v {text}: '{option}' is none of ro, rw, owners={'|'.join(OWNERS)}, cache={'|'.join(CACHES)}"
            )
    return share


def check_target(target: str) -> str:
    """The guest's folder, in its shortest form."""
    path = posixpath.normpath(target)
    if not target.startswith("/") or path.strip("/") == "" or ".." in target.split("/") or "\0" in target:
        raise UsageError(f"'{target}' can't be a share's place in the guest: name a folder from the root, as /src")
    return "/" + path.strip("/")


def check_shares(shares: list[ShareSpec]) -> list[ShareSpec]:
    """What a person asked for, in the form that the rest relies on: paths from the root, a tag each."""
    if len(shares) > MAX_SHARES:
        raise UsageError(f"a VM has at most {MAX_SHARES} shares, not {len(shares)}")
    targets: set[str] = set()
    for number, share in enumerate(shares):
        try:
            share.source = os.path.realpath(share.source, strict=True)
            if not stat.S_ISDIR(os.stat(share.source).st_mode):
                raise NotADirectoryError(20, os.strerror(20))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"can't share {share.source}: {why}") from None
        if share.target in targets:
            raise UsageError(f"two shares can't both be {share.target} in the guest")
        targets.add(share.target)
        share.tag = f"hostel{number}"
    return shares
