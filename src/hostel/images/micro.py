"""The recipe of ``micro``, the default image: Debian's cloud kernel and busybox, nothing else.

A kernel as Debian ships it, and an initramfs with busybox, the agent as init and the modules that
virtio devices and the usual file systems need. The whole is made in memory from two verified packages.

Every start of a VM asks whether the recipe has changed, hence the late imports: what makes the image is
loaded only when it is made.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hostel.base.errors import ImageError

if TYPE_CHECKING:
    from hostel.images.cpio import Tree
    from hostel.images.debian import Archive, Package
    from hostel.images.modules import ModuleSet

KERNEL = "linux-image-cloud-amd64"  # a metapackage: it depends on the current version's package
BUSYBOX = "busybox-static"

# A PCI function's vendor and device, as /proc/bus/pci/devices writes them, and the modules that drive it.
# virtio 1.2, 4.1.2.1: 0x1040 + device type; 0x1000 to 0x103f are the transitional numbers.
BOOT_MODULES = {
    "1af41000 1af41041": ["virtio_pci", "virtio_net"],
    "1af41001 1af41042": ["virtio_pci", "virtio_blk"],
    "1af41003 1af41043": ["virtio_pci", "virtio_console"],
    "1af41005 1af41044": ["virtio_pci", "virtio_rng"],
    "1af41002 1af41045": ["virtio_pci", "virtio_balloon"],
    "1af41053": ["virtio_pci", "vmw_vsock_virtio_transport"],
    "1af4105a": ["virtio_pci", "virtiofs"],
}
# Left to modprobe; the second row where the kernel has them.
MORE_MODULES = "virtio_mmio overlay squashfs fuse".split()
OPTIONAL_MODULES = "af_packet crc32c_intel crc32_pclmul libcrc32c loop".split()

# "loglevel=7" after it shows the kernel's messages again. The ciphers' self-tests would be a fifth of the boot.
CMDLINE = "console=ttyS0,115200 quiet cryptomgr.notests"

# Below this many bytes of memory every megabyte counts: the initramfs comes compressed (with a small window,
# for its memory too), and the 4 MB of inodes that tracefs makes at boot are left out. 64 MiB are enough then.
TIGHT = 96 << 20
TIGHT_CMDLINE = f"{CMDLINE} initcall_blacklist=tracer_init_tracefs"
AGENT = (
    "agent.py", "agent_bytes.py", "agent_copy.py", "agent_forward.py", "agent_identity.py", "agent_mount.py",
    "agent_root.py", "tiny.py", "asm.py",
)  # fmt: skip
MAKERS = ("micro.py", "cpio.py", "modules.py", *AGENT)


def recipe() -> str:
    """A hash of what makes the image besides the packages: it changes when a newer hostel builds otherwise."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for name in MAKERS:
        path = here / name
        total.update(path.read_bytes() if path.exists() else b"")
    return total.hexdigest()[:16]


def resolve(archive: "Archive") -> "list[Package]":
    """The packages in their current versions: the kernel's, then busybox."""
    meta = archive.package(KERNEL)
    match = re.search(r"\b(linux-image-\d[^\s,(]*)", meta.depends)
    if not match:
        raise ImageError(f"{KERNEL} {meta.version} names no kernel package")
    return [archive.package(match[1]), archive.package(BUSYBOX)]


def build(files: list[Path], folder: Path, say: Callable[[str], None]) -> dict[str, str | int]:
    """Writes ``kernel``, ``initrd`` and ``initrd.zst`` into ``folder``; returns what to note about them."""
    say("unpacking the kernel")
    kernel, modules, version = read_kernel(files[0])
    say("making the initramfs")
    busybox = read_busybox(files[1])
    (folder / "kernel").write_bytes(kernel)
    packed = initramfs(busybox, modules, version)
    (folder / "initrd").write_bytes(packed)
    (folder / "initrd.zst").write_bytes(compressed(packed))
    return {"kernel_version": version, "cmdline": CMDLINE, "tight": TIGHT, "tight_cmdline": TIGHT_CMDLINE}


def read_kernel(package: Path) -> "tuple[bytes, ModuleSet, str]":
    """The bzImage, all modules, and the kernel's version."""
    from hostel.images import deb
    from hostel.images.modules import Module, ModuleSet, builtin_file

    image, builtin, found = b"", "", []
    for member in deb.members(package, lambda path: re.match(r"boot/vmlinuz-|(usr/)?lib/modules/", path)):
        path = member.path.removeprefix("usr/")
        if path.startswith("boot/"):
            image = member.data
            version = path.removeprefix("boot/vmlinuz-")
        elif path.endswith("/modules.builtin"):
            builtin = member.data.decode("latin-1")
        elif re.search(r"\.ko(\.xz|\.zst|\.gz)?$", path):
            relative = path.split("/", 3)[3]
            plain_path = re.sub(r"\.(xz|zst|gz)$", "", relative)
            data = member.data if plain_path == relative else deb.unpacked(relative, member.data)
            found.append(Module(plain_path, data))
    if not image or not found:
        raise ImageError(f"{package.name} holds no kernel")
    return image, ModuleSet(found, builtin_file(builtin)), version


def read_busybox(package: Path) -> bytes:
    from hostel.images import deb

    for member in deb.members(package, lambda path: path in ("bin/busybox", "usr/bin/busybox")):
        return member.data
    raise ImageError(f"{package.name} holds no busybox")


def applets(busybox: bytes) -> list[str]:
    """The names that busybox answers to, from the table of them in its data.

    The table is sorted and holds each name with a NUL after it (busybox, applets/applet_tables.c); running
    ``busybox --list`` would say the same, but nothing of an image's runs on the host.
    """
    start = busybox.find(b"[\0[[\0")
    table = busybox[start : busybox.find(b"\0\0", start)] if start >= 0 else b""
    names = table.decode("latin-1").split("\0")
    if not {"sh", "mount", "poweroff", "ls"} <= set(names) or len(names) > 500:
        raise ImageError("busybox has no table of applets where one is expected")
    return [name for name in names if re.fullmatch(r"[a-z0-9_.\[-]+", name)]


def initramfs(busybox: bytes, modules: "ModuleSet", version: str) -> bytes:
    from hostel.images import agent, cpio, tiny

    tree = cpio.Tree()
    # The kernel opens /dev/console for init before init can mount anything.
    tree.device("dev/console", "c", 5, 1)
    tree.device("dev/null", "c", 1, 3, 0o666)
    for path in ("proc", "sys", "run", "mnt", "root", "var/tmp", "etc", "usr"):
        tree.folder(path)
    tree.folder("tmp", 0o1777)
    tree.file("bin/busybox", busybox, 0o755)
    for name in applets(busybox):
        if name != "busybox":
            tree.link(f"bin/{name}", "busybox")
    for path, target in {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin", "var/run": "../run"}.items():
        tree.link(path, target)
    tree.file("init", tiny.compiled(agent), 0o755)
    for path, text in ETC.items():
        tree.file(f"etc/{path}", text.encode())
    for path, script in SCRIPTS.items():
        tree.file(path, script.encode(), 0o755)
    add_modules(tree, modules, version)
    return tree.pack()


def compressed(archive: bytes) -> bytes:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=19)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(archive)


def add_modules(tree: "Tree", modules: "ModuleSet", version: str) -> None:
    names = [name for row in BOOT_MODULES.values() for name in row] + MORE_MODULES
    names += [name for name in OPTIONAL_MODULES if name in modules.modules]
    chosen = modules.order(names)
    base = f"lib/modules/{version}"
    for module in chosen:
        tree.file(f"{base}/{module.path}", module.data)
    tree.file(f"{base}/modules.dep", modules.dep_file(chosen).encode())
    tree.file(f"{base}/modules.alias", modules.alias_file(chosen).encode())
    tree.file(f"{base}/modules.builtin", "".join(f"kernel/{n}.ko\n" for n in sorted(modules.builtin)).encode())
    tree.file("lib/modules/boot", boot_list(modules, base).encode())


def boot_list(modules: "ModuleSet", base: str) -> str:
    """What the agent loads: a module's path and the PCI functions that want it, needs first."""
    from hostel.images import agent

    wanted: dict[str, list[str]] = {}
    for row, names in BOOT_MODULES.items():
        for module in modules.order(names):
            wanted.setdefault(module.path, []).extend(row.split())
    every = modules.order(name for names in BOOT_MODULES.values() for name in names)
    text = "".join(f"/{base}/{module.path} {' '.join(wanted[module.path])}\n" for module in every)
    assert len(text) < int(agent.MODULES), "the agent's buffer for this list is too small"
    return text


# What busybox's DHCP client calls, and what waits for it.
SCRIPTS = {
    "etc/udhcpc/default.script": """#!/bin/sh
case $1 in
deconfig)
    ip -4 addr flush dev $interface 2>/dev/null
    rm -f /etc/resolv.conf.$interface
    ip link set $interface up ;;
bound|renew)
    ip addr replace $ip/$mask broadcast + dev $interface
    [ -n "$mtu" ] && ip link set $interface mtu $mtu
    for address in $router; do
        ip route replace default via $address dev $interface metric ${interface#eth}
    done
    [ "$hostname" ] && [ "$(cat /proc/sys/kernel/hostname)" = micro ] && hostname $hostname
    {
        [ -n "$domain" ] && echo search $domain
        for address in $dns; do echo nameserver $address; done
    } > /etc/resolv.conf.$interface
    cat /etc/resolv.conf.eth* > /etc/resolv.conf ;;
esac
""",
    "bin/wait-network": """#!/bin/sh
# Returns once the network is there; 1 after so many seconds (10).
n=$((${1:-10} * 20))
until [ -s /etc/resolv.conf ]; do
    [ $((n -= 1)) -lt 0 ] && exit 1
    usleep 50000
done
""",
}

ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "hostel\n",
    "profile": "export PS1='\\h:\\w\\$ '\nalias ll='ls -l'\n",
    "os-release": 'NAME="hostel micro"\nID=hostel-micro\nPRETTY_NAME="hostel micro (Debian kernel, busybox)"\n',
}
