"""A folder of the host's in the guest by virtiofs: hostel's ``-v`` beside QEMU with virtiofsd."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from bench import programs, shares
from bench.errors import Wrong
from bench.guest import Guest
from bench.peer import Peer, Ran
from bench.row import Context, Group, Measurement, Row, Sample, Values
from hostel.base import atomic

COUNT = shares.FOLDERS * shares.FILES
# The guest's kernel then knows nothing of the share; git's index has been brought up to date before.
FORGET = "echo 3 > /proc/sys/vm/drop_caches"
STATUS = "$PROGRAMS/git -C /mnt/repository status --porcelain"


@functools.cache
def guest() -> Guest:
    """The micro image with the programs, git and the archive."""
    plain = programs.guest()
    initrd = plain.initrd.with_name(f"{plain.initrd.stem}-shares.initrd")
    with atomic.replacing(initrd) as file:
        file.write(plain.initrd.read_bytes() + shares.extras().pack())
    return dataclasses.replace(plain, initrd=initrd, share=True, memory_mib=512)


def inside(script: str, prepare: str, check: Callable[[Peer, Ran], bool]) -> Measurement:
    """A line of shell, timed, on machines that have the share."""

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        for peer in peers:
            if not (peer.is_machine and peer.has_share):
                continue
            peer.run(prepare)
            used = peer.cpu_seconds()
            ran = peer.run(script)
            values[peer.name] = Sample(ran.seconds, peer.cpu_seconds() - used)
            if not check(peer, ran):
                raise Wrong(f"{peer.title}: '{script}' went wrong: {ran.output[-300:]}")
        return values

    return measure


def same_tree(peer: Peer, ran: Ran) -> bool:
    """As the host sees it."""
    folder = peer.share()
    return shares.digest(folder.path / "tree") == folder.digest


def nothing_said(peer: Peer, ran: Ran) -> bool:
    return not ran.output


UNTAR = inside("tar xf $PROGRAMS/tree.tar -C /mnt/tree", "mkdir /mnt/tree", same_tree)
GIT = inside(STATUS, f"{STATUS} && {FORGET}", nothing_said)
SHARES = Group((
    Row("share-untar", f"untar of {COUNT:,} small files into a share", "s", UNTAR),
    Row("share-git", f"git status of {COUNT:,} files in a share", "s", GIT),
), guest)
