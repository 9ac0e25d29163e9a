"""The recipe of ``debian``: a whole Debian on a disk, with its kernel, made by mmdebstrap from the host's own mirrors.

mmdebstrap makes a tar archive (with apt, which verifies each package), and ``mkfs.ext4 -d`` a file system of it: no
loop devices, no mounts of ours. Root isn't needed where the user has subordinate ids (subuid(5), newuidmap): both work
in a user namespace then.

The disk is one ext4 file system without a partition table, so that a larger disk only needs it grown, which systemd
does at each boot (x-systemd.growfs). There is no boot loader: hostel reads the kernel from /vmlinuz (board/boot/disk).

What differs from a plain Debian, all in files of their own names that a person can find and remove: the agent, root's
automatic login on the serial console, networks by systemd-networkd, an initramfs with just what a VM needs, and no
timers that would fetch package lists by themselves.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hostel.base import atomic
from hostel.base.errors import ImageError
from hostel.base.units import format_size
from hostel.images import sources
from hostel.spec.cards import AGENT_PORT

DEFAULT_SIZE = 8 << 30
MIN_SIZE = 2 << 30  # 600 MB are used at the start, and apt wants room
MAX_SIZE = 16 << 40  # ext4's limit with blocks of 4 KiB
TIME_LIMIT = 3600  # seconds for mmdebstrap: hundreds of megabytes through a slow mirror
OPEN_TO_ALL = Path("/var/tmp")
SUITE = re.compile(r"[a-z][a-z0-9-]{0,30}")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?([/=][A-Za-z0-9.+:~-]+)?")
PACKAGES = """ca-certificates dbus e2fsprogs init initramfs-tools iproute2 iputils-ping kmod less
libpam-systemd linux-image-cloud-amd64 nano netbase openssh-server procps sudo systemd-sysv udev""".split()
RESOLVED = "systemd-resolved"  # a package of its own since bookworm
MODULES = "virtio_pci virtio_blk".split()
CMDLINE = "root=UUID={uuid} ro console=ttyS0,115200 quiet"
KEPT_OFF = """apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service getty@tty1.service
systemd-resolved.service""".split()
LIB = "/usr/local/lib/hostel"

FILES = {
    "etc/fstab": "UUID={uuid} / ext4 defaults,errors=remount-ro,x-systemd.growfs 0 1\n",
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/machine-id": "",  # systemd makes each VM's own at its first boot
    "etc/systemd/network/80-hostel.network": """\
[Match]
Name=en* eth*

[Network]
DHCP=yes
IPv6AcceptRA=yes
""",
    "etc/systemd/system/serial-getty@.service.d/hostel.conf": """\
# Who reaches the console owns the VM.
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 %I $TERM
""",
    # sulogin of the locked root, on that console
    "etc/systemd/system/emergency.service.d/hostel.conf": "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n",
    "etc/systemd/system/rescue.service.d/hostel.conf": "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n",
    "etc/systemd/system/hostel-agent.service": f"""\
[Unit]
Description=hostel's agent: commands and files for the host
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup.service systemd-udev-trigger.service hostel-first-boot.service
Conflicts=shutdown.target
Before=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStart={LIB}/agent /dev/virtio-ports/{AGENT_PORT}
Restart=always
RestartSec=1s
KillMode=process
OOMScoreAdjust=-500
""",
    "etc/udev/rules.d/90-hostel.rules": (
        f'SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{AGENT_PORT}", TAG+="systemd",'
        ' ENV{SYSTEMD_WANTS}+="hostel-agent.service"\n'
    ),
    "etc/systemd/system/hostel-first-boot.service": f"""\
[Unit]
Description=hostel: what this machine was given at its making
DefaultDependencies=no
ConditionPathExists=!/var/lib/hostel/first-boot-done
After=systemd-remount-fs.service systemd-udevd.service
Before=sysinit.target ssh.service network-pre.target hostel-agent.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={LIB}/first-boot
StandardOutput=journal+console

[Install]
WantedBy=sysinit.target
""",
    "etc/systemd/system/hostel-late.service": f"""\
[Unit]
Description=hostel: the last of what this machine was given at its making
ConditionPathExists=/var/lib/hostel/late
After=network-online.target multi-user.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=infinity
ExecStart={LIB}/late
StandardOutput=journal+console

[Install]
WantedBy=default.target
""",
    "var/lib/hostel/README": "Nothing here is needed once this machine has booted for the first time.\n",
    "etc/ssh/sshd_config.d/hostel.conf": "# the one that hostel-ssh-key makes\nHostKey /etc/ssh/ssh_host_ed25519_key\n",
    "etc/systemd/system/hostel-ssh-key.service": """\
[Unit]
Description=hostel: this machine's own SSH key
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=ssh.service
""",
}

# Busybox's shell could run these, Debian's dash does. The seed is a NoCloud disk (images/seed) when there is one; where
# cloud-init is installed, that reads it, and only the rest is ours.
SCRIPTS = {
    f"{LIB[1:]}/first-boot": """\
#!/bin/sh
# Once, early: this machine's name, and what its maker wants (hostel run --cloud-init, --ssh-key). All else waits for
# it, so it starts no program where it needn't.
read -r cmdline < /proc/cmdline
seed=
for word in $cmdline; do
    case $word in
    hostel.seed) seed=yes ;;
    hostel.hostname=*)
        name=${word#*=}
        echo "$name" > /etc/hostname
        echo "127.0.1.1 $name" >> /etc/hosts
        echo "$name" > /proc/sys/kernel/hostname ;;
    esac
done
if [ ! -x /usr/bin/cloud-init ] && [ -n "$seed" ]; then
    mkdir -p /run/hostel/seed
    n=0
    while ! seed=$(blkid -L CIDATA || blkid -L cidata); do
        n=$((n + 1)); [ $n -lt 50 ] || break; sleep 0.1
    done
    if [ -n "$seed" ] && mount -o ro "$seed" /run/hostel/seed; then
        if [ -e /run/hostel/seed/hostel-late ]; then
            install -m 700 /run/hostel/seed/hostel-late /var/lib/hostel/late
        fi
        sh /run/hostel/seed/hostel-early
        umount /run/hostel/seed
    else
        echo "hostel: the seed disk can't be read" >&2
    fi
fi
: > /var/lib/hostel/first-boot-done
""",
    f"{LIB[1:]}/late": """\
#!/bin/sh
# Once, when the network is up. What it says is in /var/log/hostel-late.log.
mv /var/lib/hostel/late /run/hostel-late || exit 1
sh /run/hostel-late > /var/log/hostel-late.log 2>&1
status=$?
echo "hostel: what was to be run at the first boot ended with status $status; see /var/log/hostel-late.log"
""",
}
LINKS = {
    "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    "etc/systemd/system/sysinit.target.wants/hostel-first-boot.service": "../hostel-first-boot.service",
    "etc/systemd/system/default.target.wants/hostel-late.service": "../hostel-late.service",
    "etc/systemd/system/ssh.service.wants/hostel-ssh-key.service": "../hostel-ssh-key.service",
    # nobody needs names before there is a network: in sysinit.target, where it was, all else waits for it
    "etc/systemd/system/multi-user.target.wants/systemd-resolved.service":
        "/lib/systemd/system/systemd-resolved.service",
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service":
        "/lib/systemd/system/systemd-networkd.service",
    "etc/systemd/system/sockets.target.wants/systemd-networkd.socket": "/lib/systemd/system/systemd-networkd.socket",
}
# What must be there before the packages are configured: the initramfs is made then.
EARLY = {
    "etc/kernel/cmdline": CMDLINE + "\n",
    "etc/initramfs-tools/conf.d/hostel": "# what a VM needs, and no more\nMODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
    "usr/share/initramfs-tools/modules.d/hostel.conf": "\n".join(MODULES) + "\n",
}


@dataclass(frozen=True)
class Options:
    """What a person may choose of an image."""

    suite: str = ""  # "": the host's own, else Debian's stable of this hostel
    include: tuple[str, ...] = ()
    size: int = DEFAULT_SIZE
    ssh_key: str = ""  # a line of authorized_keys

    def check(self) -> None:
        if self.suite and not SUITE.fullmatch(self.suite):
            raise ImageError(f"'{self.suite}' is no name of a Debian suite; bookworm and trixie are such")
        for name in self.include:
            if not PACKAGE.fullmatch(name):
                raise ImageError(f"'{name}' is no name of a Debian package")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ImageError(
                f"a Debian's disk has {format_size(MIN_SIZE)} to {format_size(MAX_SIZE)}, not {format_size(self.size)}"
            )


def recipe() -> str:
    """A hash of what makes the image besides the packages."""
    from hostel.images.micro import AGENT

    total = hashlib.sha256()
    for name in ("bootstrap.py", *AGENT):
        total.update((Path(__file__).parent / name).read_bytes())
    return total.hexdigest()[:16]


def check_tools() -> None:
    """``ImageError`` names what is missing on this host."""
    for program, package in (("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs"), ("tar", "tar")):
        if not _which(program):
            raise ImageError(f"{program} isn't there, by which hostel makes Debian images: apt install {package}")
    if os.geteuid() != 0 and not _which("newuidmap"):
        raise ImageError("without root this needs subordinate ids (apt install uidmap; /etc/subuid names who has some)")


def build(options: Options, folder: Path, say: Callable[[str], None]) -> dict[str, str | int]:
    """Writes a disk into ``folder``; returns what to note about it, and its name as ``disk``. Raises ImageError."""
    options.check()
    check_tools()
    suite = options.suite or default_suite()
    identity = str(uuid.uuid4())
    # Without root mmdebstrap's processes are others than their user (subordinate ids), who don't get into his folders.
    place = folder if os.geteuid() == 0 else OPEN_TO_ALL
    with tempfile.TemporaryDirectory(dir=place, prefix=".work-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary)
        say(f"making a Debian {suite}: fetching and unpacking its packages")
        bootstrap(work, suite, options, identity)
        version = kernel_version(work / "root.tar")
        say("making the file system")
        try:
            make_file_system(work, work / "disk.raw", options.size, identity)
        finally:
            _make_removable(work)
        # A name of its own: VMs stand on this file, also when the image is made anew.
        name = f"disk-{identity[:8]}.qcow2"
        to_qcow2(work / "disk.raw", folder / name)
    return {
        "kernel_version": version, "suite": suite, "disk": name, "disk_size": options.size,
        "include": " ".join(options.include), "ssh_key": options.ssh_key, "agent_port": AGENT_PORT,
    }  # fmt: skip


def default_suite() -> str:
    """The host's own suite, if it is a Debian."""
    return next((s.suite for s in sources.configured() if "-" not in s.suite and "/" not in s.suite), "bookworm")


def mirrors(suite: str) -> list[sources.Source]:
    """The host's sources for ``suite``; of another suite the same ones by its name."""
    configured = sources.configured()
    own = [source for source in configured if re.split("[-/]", source.suite)[0] == suite]
    if own:
        return own
    base = default_suite()
    renamed = [
        sources.Source(source.mirror, source.suite.replace(base, suite, 1))
        for source in configured
        if re.split("[-/]", source.suite)[0] == base
    ]
    rolling = suite in ("sid", "unstable")  # has neither updates nor security
    return [source for source in renamed if not rolling or source.suite == suite] or [
        sources.Source(configured[0].mirror, suite)
    ]


def bootstrap(work: Path, suite: str, options: Options, identity: str) -> None:
    """mmdebstrap's part: ``root.tar``."""
    from hostel.images import agent, tiny

    early, late = work / "early.tar", work / "late.tar"
    write_tar(early, {path: text.format(uuid=identity).encode() for path, text in EARLY.items()})
    files = {path: text.replace("{uuid}", identity).encode() for path, text in FILES.items()}
    if options.ssh_key:
        files["root/.ssh/authorized_keys"] = options.ssh_key.encode() + b"\n"
    programs = {path: text.encode() for path, text in SCRIPTS.items()} | {f"{LIB[1:]}/agent": tiny.compiled(agent)}
    found = mirrors(suite)
    proxies = {s: p for s, p in sources.proxies(sources.apt_settings()).items() if s in ("http", "https")}
    visible = [f'Acquire::{s}::Proxy "{p}";\n' for s, p in proxies.items() if not _is_local(p)]
    if visible:
        files["etc/apt/apt.conf.d/95hostel-proxy"] = "".join(visible).encode()
    files["etc/apt/sources.list"] = "".join(f"deb {_reachable(s)} {s.suite} main\n" for s in found).encode()
    write_tar(late, files, programs, LINKS)
    packages = [*PACKAGES, *([] if suite in ("bullseye", "buster") else [RESOLVED]), *options.include]
    off = " ".join(f"etc/systemd/system/*.wants/{unit}" for unit in KEPT_OFF)
    command = [
        "mmdebstrap", "--variant=minbase", "--architectures=amd64", f"--include={','.join(packages)}",
        f"--essential-hook=tar-in {early} /",
        # the image's own keys would be the same in every VM
        f'--customize-hook=cd "$1" && rm -f {off} etc/ssh/ssh_host_* etc/resolv.conf var/lib/dbus/machine-id',
        f"--customize-hook=tar-in {late} /",
        suite, str(work / "root.tar"), *(f"deb {source.mirror} {source.suite} main" for source in found),
    ]  # fmt: skip
    environment = {
        **os.environ, **{f"{scheme}_proxy": proxy for scheme, proxy in proxies.items()},
        "SOURCE_DATE_EPOCH": str(int(time.time())), "LC_ALL": "C.UTF-8",
        "TMPDIR": str(work if os.geteuid() == 0 else OPEN_TO_ALL), "PATH": _path(),
    }  # fmt: skip
    # its workers drop to users of their own, who must get in
    for path in (work, early, late):
        path.chmod(0o755)
    run(command, "mmdebstrap", environment, TIME_LIMIT)


def write_tar(
    path: Path, files: dict[str, bytes], programs: dict[str, bytes] | None = None, links: dict[str, str] | None = None
) -> None:
    """An archive of files of root's."""
    with tarfile.open(path, "w") as archive:
        for entries, mode in ((files, 0o644), (programs or {}, 0o755)):
            for name, data in entries.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = len(data), 0o600 if "/.ssh/" in name else mode, int(time.time())
                archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.mtime = tarfile.SYMTYPE, target, 0o777, int(time.time())
            archive.addfile(info)


def kernel_version(tar: Path) -> str:
    """The newest kernel in the archive, of which there is one."""
    with tarfile.open(tar) as archive:
        for member in archive:
            if match := re.fullmatch(r"(\./)?boot/vmlinuz-(.+)", member.name):
                return match[2]
    raise ImageError("what mmdebstrap made has no kernel")


def make_file_system(work: Path, disk: Path, size: int, identity: str) -> None:
    """``root.tar`` as an ext4 file system in a sparse file."""
    tree: Path = work / "root.tar"
    before: list[str] = []
    if not _reads_tar():
        tree = work / "root"
        # devices can't be made without root; there is devtmpfs
        unpack = f"tar -C {tree} -xpf {work / 'root.tar'} --numeric-owner --exclude='./dev/*'"
        unpack += " --xattrs --xattrs-include='*'"
        before = [f"mkdir {tree}", unpack]
    # Features that older e2fsprogs don't know would keep an older Debian from its own file system; the disk's zeros
    # needn't be written again.
    mkfs = (
        f"mkfs.ext4 -q -F -L root -U {identity} -m 1 -O ^orphan_file,^metadata_csum_seed"
        f" -E lazy_itable_init=0,root_owner=0:0 -d {tree} {disk} {size >> 10}k"
    )
    with open(disk, "wb") as file:
        file.truncate(size)
    shell = " && ".join([*before, mkfs])
    as_root: list[str] = []
    if os.geteuid() != 0 and before:
        as_root = ["unshare", "--map-root-user", "--map-auto"]  # with subordinate ids, which mmdebstrap needs as well
        shell = f"({shell}); status=$?; rm -rf {tree}; exit $status"  # files of theirs, which nobody else may remove
    run([*as_root, "sh", "-c", shell], "mkfs.ext4", {**os.environ, "PATH": _path()}, TIME_LIMIT)


def to_qcow2(source: Path, target: Path) -> None:
    """The same disk as a qcow2 image, what is zero left out."""
    from hostel.base.errors import BlockError
    from hostel.block.convert import convert
    from hostel.block.disk import open_disk

    try:
        raw = open_disk(source, "raw", readonly=True)
        try:
            convert(raw, target, "qcow2")
        finally:
            raw.close()
    except BlockError as error:
        raise ImageError(str(error)) from error


def run(command: Sequence[str], name: str, environment: dict[str, str], limit: float) -> None:
    """A program that must succeed; ``ImageError`` has the line that says why it didn't."""
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ImageError(f"{name} didn't end in {limit:.0f} seconds") from None
    except OSError as error:
        raise ImageError(f"can't run {name}: {error.strerror}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any("No space left on device" in line for line in lines):
            raise ImageError(f"{name}: {atomic.ADVICE[28]}")
        telling = [line for line in lines if re.match(r"(E|Err|error|mkfs|tar)\b", line)] or lines
        unreachable = [line for line in telling if "resolve" in line or "Could not connect" in line]
        why = (unreachable or telling or [f"it ended with status {done.returncode}"])[0]
        raise ImageError(f"{name}: {why[:300]}")


def _reads_tar() -> bool:
    """Whether this mkfs.ext4 takes an archive after -d (e2fsprogs 1.47.1, if built with libarchive)."""
    try:
        said = subprocess.run(
            ["mkfs.ext4", "-V"], capture_output=True, text=True, env={**os.environ, "PATH": _path()}
        ).stderr  # fmt: skip
    except OSError:
        return False
    match = re.search(r"mke2fs (\d+)\.(\d+)(?:\.(\d+))?", said)
    version = tuple(int(part or 0) for part in match.groups()) if match else ()
    return version >= (1, 47, 1) and find_library("archive") is not None


def _is_local(url: str) -> bool:
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _reachable(source: sources.Source) -> str:
    """A mirror as a guest can use it: what is a file of the host's, or its loopback's, becomes Debian's own."""
    if source.mirror.startswith("file:") or _is_local(source.mirror):
        return "http://deb.debian.org/debian" + ("-security" if "security" in source.suite else "")
    return source.mirror


def _path() -> str:
    """Where programs are, sbin too, which isn't on every user's PATH."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"


def _which(program: str) -> str:
    return shutil.which(program, path=_path()) or ""


def _make_removable(work: Path) -> None:
    """Folders that their own owner may not write, as a distribution has some, would stay."""
    if os.geteuid() != 0:
        for root, folders, _ in os.walk(work):
            for name in folders:
                path = Path(root, name)
                with contextlib.suppress(OSError):
                    if not path.is_symlink():
                        path.chmod(stat.S_IRWXU)
