"""A mount's options, as runtime-spec 1.2 (config.md, "Linux mount options") has them, and what they are to the kernel.

Flags are those of mount(2), attributes those of mount_setattr(2), which also know mounts below a mount (``rro``).
"""

import os

from hostel.base.errors import ContainerError

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC = 1, 2, 4, 8, 32, 4096, 16384
UNBINDABLE, PRIVATE, SLAVE, SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
ATTR_RDONLY, ATTR_IDMAP = 1, 0x10_0000
_ATIME = 0x70  # MOUNT_ATTR__ATIME: a number of three values, not three bits

# By name: the flag of mount(2) and whether it is set or cleared; the attribute that is set, and those cleared.
_FLAGS = {
    "ro": (1, True, 1, 0), "rw": (1, False, 0, 1), "nosuid": (2, True, 2, 0), "suid": (2, False, 0, 2),
    "nodev": (4, True, 4, 0), "dev": (4, False, 0, 4), "noexec": (8, True, 8, 0), "exec": (8, False, 0, 8),
    "noatime": (1024, True, 0x10, _ATIME), "atime": (1024, False, 0, _ATIME),
    "nodiratime": (2048, True, 0x80, 0), "diratime": (2048, False, 0, 0x80),
    "relatime": (1 << 21, True, 0, _ATIME), "norelatime": (1 << 21, False, 0x20, _ATIME),
    "strictatime": (1 << 24, True, 0x20, _ATIME), "nostrictatime": (1 << 24, False, 0, _ATIME),
    "nosymfollow": (256, True, 0x20_0000, 0), "symfollow": (256, False, 0, 0x20_0000),
}  # fmt: skip
_OTHERS = {  # file systems' flags: no attributes of a mount
    "sync": (16, True), "async": (16, False), "dirsync": (128, True), "mand": (64, True), "nomand": (64, False),
    "silent": (1 << 15, True), "loud": (1 << 15, False), "iversion": (1 << 23, True), "noiversion": (1 << 23, False),
    "lazytime": (1 << 25, True), "nolazytime": (1 << 25, False), "acl": (1 << 16, True), "noacl": (1 << 16, False),
    "remount": (32, True),
}  # fmt: skip
PROPAGATION = {"private": PRIVATE, "slave": SLAVE, "shared": SHARED, "unbindable": UNBINDABLE}
_IGNORED = ("defaults", "auto", "noauto", "user", "nouser", "_netdev", "nofail", "z", "Z")


def inside(path: str) -> str:
    """A path of the container's, from its root on. normpath(3posix) would keep two slashes at the beginning."""
    return os.path.normpath("/" + path.lstrip("/"))


class Mount:
    """One of the configuration's, read."""

    def __init__(self, mount: dict, bundle: str):
        self.destination = inside(mount["destination"])
        self.type = mount.get("type") or "none"
        self.source = mount.get("source") or self.type
        self.flags = 0
        self.bind = self.type == "bind"
        self.recursive = False        # a bind of all that is below
        self.set = self.clear = 0     # attributes of the mount
        self.rset = self.rclear = 0   # of all below it too
        self.propagation: list[tuple[int, bool]] = []  # one after the other; whether below too
        self.copy_up = False
        self.idmap = False
        self.idmap_below = False
        self.maps = (mount.get("uidMappings") or [], mount.get("gidMappings") or [])
        data = []
        for option in mount.get("options") or []:
            if not self._read(option) and option not in _IGNORED:
                data.append(option)
        self.data = ",".join(data)
        name = f"config.json: mounts: {self.destination}"
        if self.destination == "/":
            raise ContainerError(f"{name}: nothing can be mounted on the container's root")
        if bool(self.maps[0]) != bool(self.maps[1]):
            raise ContainerError(f"{name}: uidMappings and gidMappings go together")
        if self.maps[0] or self.maps[1]:
            self.idmap = True
        if self.bind:
            if self.data:
                raise ContainerError(f"{name}: a bind mount can't have the option {data[0]}")
            self.source = os.path.join(bundle, self.source)
        elif self.idmap:
            raise ContainerError(f"{name}: id mappings are for bind mounts")
        elif self.type == "none" and not self.flags & REMOUNT:
            raise ContainerError(f"{name}: no file system's type, and no 'bind' in options")
        if self.copy_up and self.type != "tmpfs":
            raise ContainerError(f"{name}: tmpcopyup is for tmpfs")
        if len(self.data) > 4000:
            raise ContainerError(f"{name}: options are longer than the kernel's 4 KiB")

    def _read(self, option: str) -> bool:
        if option in ("bind", "rbind"):
            self.bind, self.recursive = True, self.recursive or option == "rbind"
        elif option in _FLAGS:
            flag, on, add, remove = _FLAGS[option]
            self.flags = self.flags | flag if on else self.flags & ~flag
            self.set, self.clear = self.set & ~remove | add, self.clear & ~add | remove
        elif option in _OTHERS:
            flag, on = _OTHERS[option]
            self.flags = self.flags | flag if on else self.flags & ~flag
        elif option in PROPAGATION:
            self.propagation.append((PROPAGATION[option], False))
        elif option[:1] == "r" and option[1:] in PROPAGATION:
            self.propagation.append((PROPAGATION[option[1:]], True))
        elif option[:1] == "r" and option[1:] in _FLAGS:
            _, _, add, remove = _FLAGS[option[1:]]
            self.rset, self.rclear = self.rset & ~remove | add, self.rclear & ~add | remove
        elif option == "tmpcopyup":
            self.copy_up = True
        elif option in ("idmap", "ridmap"):
            self.idmap, self.idmap_below = True, option == "ridmap"
        else:
            return False
        return True


def names() -> list[str]:
    """All that mean something to us; a file system has its own besides."""
    below = [f"r{name}" for name in (*_FLAGS, *PROPAGATION)]
    return sorted({*_FLAGS, *_OTHERS, *PROPAGATION, *below, "bind", "rbind", "tmpcopyup", "idmap", "ridmap"})
