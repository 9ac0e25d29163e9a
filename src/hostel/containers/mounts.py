"""A container's file systems, as operations of its first process (``stage``).

What is mounted *on* is always found by openat2 beneath the container's root with ``RESOLVE_IN_ROOT``, and used by
its descriptor: a link or a rename in the rootfs, or by another container that shares a volume with it, leads nowhere
else. What is mounted is opened by the host's paths, with the runtime's rights and before anything of the
container's is in sight where the runtime is root (``open_sources``), else in the container's user namespace. Nothing
is read through the container's /proc or /dev: masked files are covered by the host's /dev/null.
"""

import os
import stat
import struct
from errno import EEXIST, EINVAL, ENOENT, ENOTDIR, EPERM

from hostel.base.errors import ContainerError
from hostel.containers import mount_options as options
from hostel.containers.mount_options import Mount
from hostel.containers.stage import ANY, Label, Script, Slot

_CWD = -100
_EMPTY, _RECURSIVE = 0x1000, 0x8000              # AT_EMPTY_PATH, AT_RECURSIVE
_CLONE, _CLOEXEC = 1, 0x80000                    # OPEN_TREE_CLONE, O_CLOEXEC
_BY_FD = 0x4 | 0x40                              # MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
_PATH, _DIRECTORY, _NOFOLLOW = 0x20_0000, 0x1_0000, 0x2_0000
_IN_ROOT, _NO_MAGICLINKS, _NO_SYMLINKS = 0x10, 0x02, 0x04
_CREATE = 0o100 | 0o200 | 1                      # O_CREAT, O_EXCL, O_WRONLY
_DETACH = 2
DEVICES = (
    ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0),
)  # fmt: skip
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
          ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"))  # fmt: skip
_TYPE = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def find(config: dict, bundle: str) -> list[Mount]:
    """The configuration's mounts, checked."""
    found = [Mount(mount, bundle) for mount in config.get("mounts") or []]
    for mount in found:
        if mount.bind and not mount.flags & options.REMOUNT and not os.path.lexists(mount.source):
            raise ContainerError(f"config.json: mounts: {mount.destination}: there is no {mount.source} on this host")
    return found


class Mounts:
    """Writes operations to ``script``. ``early``: the runtime opens what is mounted, as it may (``open_sources``)."""

    def __init__(self, script: Script, config: dict, bundle: str, mounts: list[Mount], early: bool, own_user: bool):
        self.script = script
        self.config = config
        self.linux = config.get("linux") or {}
        self.mounts = mounts
        self.early = early
        self.own_user = own_user
        self.rootfs = os.path.join(bundle, config["root"]["path"])
        self.root = script.slot()          # the root's mount, a path's descriptor
        self._trees: dict[int, Slot] = {}
        self.copies: list[tuple[Slot, Slot, str]] = []
        self.idmaps: dict[int, int] = {}   # of a mount, by its number: a user namespace's descriptor
        propagation = self.linux.get("rootfsPropagation") or "rslave"
        name = propagation.removeprefix("r") if propagation not in options.PROPAGATION else propagation
        if name not in options.PROPAGATION:
            raise ContainerError(f"config.json: linux.rootfsPropagation: {propagation} is none")
        self.propagation = options.PROPAGATION[name]
        self.propagation_below = propagation != name

    # What is mounted.

    def open_sources(self) -> None:
        """In the runtime's own namespaces: the root and what is bound, as mounts that are nowhere yet."""
        self._open_root()
        for number, mount in enumerate(self.mounts):
            if mount.bind and not mount.flags & options.REMOUNT:
                self._open(number, mount)

    def _open_root(self) -> None:
        self._tree = self.script.slot()
        self.script.call("open_tree", _CWD, self.rootfs, _CLONE | _CLOEXEC | _RECURSIVE, to=self._tree,
                         what=f"the container's root {self.rootfs}")  # fmt: skip

    def _open(self, number: int, mount: Mount) -> Slot:
        script, tree = self.script, self.script.slot()
        script.doing = f"mounting {mount.source} on {mount.destination}"
        flags = _CLONE | _CLOEXEC | (_RECURSIVE if mount.recursive else 0)
        script.call("open_tree", _CWD, mount.source, flags, to=tree)
        if mount.idmap:
            below = _RECURSIVE if mount.idmap_below else 0
            self._attributes(tree, options.ATTR_IDMAP, 0, below, self.idmaps[number])
        self._trees[number] = tree
        return tree

    def _attributes(self, fd: Slot, add: int, remove: int, below: int = 0, user: int = 0, propagation: int = 0) -> None:
        attributes = self.script.constant(struct.pack("<QQQQ", add, remove, propagation, user))
        self.script.call("mount_setattr", fd, "", _EMPTY | below, attributes, 32)

    # Where it is mounted.

    def _how(self, flags: int, mode: int = 0, resolve: int = _IN_ROOT | _NO_MAGICLINKS) -> int:
        return self.script.constant(struct.pack("<QQQ", flags | _CLOEXEC, mode, resolve))

    def resolve(self, path: str, directory: bool, strict: bool = False) -> Slot:
        """A descriptor of the path beneath the container's root; what is missing is made."""
        script, found = self.script, self.script.slot()
        inside = path.lstrip("/") or "."
        resolve = _IN_ROOT | _NO_MAGICLINKS | (_NO_SYMLINKS if strict else 0)
        how = self._how(_PATH | (_DIRECTORY if directory else 0), 0, resolve)
        done, make = Label(), Label()
        script.call("openat2", self.root, inside, how, 24, to=found, on={ENOENT: make})
        script.jump(done)
        script.bind(make)
        names = inside.split("/")
        folder_how = self._how(_PATH | _DIRECTORY, 0, resolve)
        parent = self.root
        for count, name in enumerate(names, 1):
            if count == len(names) and not directory:
                file = script.slot()
                script.call("openat2", parent, name, self._how(_CREATE | _NOFOLLOW, 0o644), 24, to=file)
                script.call("close", file)
                break
            prefix, below, missing, there = "/".join(names[:count]), script.slot(), Label(), Label()
            script.call("openat2", self.root, prefix, folder_how, 24, to=below, on={ENOENT: missing})
            script.jump(there)
            script.bind(missing)
            script.call("mkdirat", parent, name, 0o755)
            script.call("openat2", self.root, prefix, folder_how, 24, to=below)
            script.bind(there)
            if parent is not self.root:
                script.call("close", parent)
            parent = below
        if parent is not self.root:
            script.call("close", parent)
        script.call("openat2", self.root, inside, how, 24, to=found)
        script.bind(done)
        return found

    # The order of things in the container's first process.

    def attach_root(self) -> None:
        """Have the host's mounts out of reach of what happens here, and the root be a mount of its own."""
        script = self.script
        script.doing = f"the container's root {self.rootfs}"
        base = self.propagation if self.propagation != options.UNBINDABLE else options.PRIVATE
        below = _RECURSIVE if self.propagation_below or base != options.SHARED else 0
        attributes = script.place(struct.pack("<QQQQ", 0, 0, base, 0))
        script.call("mount_setattr", _CWD, "/", below, attributes, 32)
        if base == options.SHARED:  # pivot_root refuses a root whose mount's parent is shared
            private = script.place(struct.pack("<QQQQ", 0, 0, options.PRIVATE, 0))
            script.call("mount_setattr", _CWD, "/", 0, private, 32)
        if not self.early:
            self._open_root()
        elif base != options.SHARED:
            self._attributes(self._tree, 0, 0, _RECURSIVE, 0, base)
        # On the host's root, where everybody may go; who has that for a root already doesn't see it.
        script.call("move_mount", self._tree, "", _CWD, "/", 0x4)
        script.copy(self.root.address, self._tree)

    def mount_all(self, cgroup: list[tuple[str, str]] | None, own: dict[str, str] | None = None) -> None:
        """``cgroup``: v1's hierarchies by folder and mount data; None where the host has v2 only. ``own``: the
        container's cgroup's folders by controller, where it has no cgroup namespace that shows it only those."""
        self.own_cgroup = own
        for number, mount in enumerate(self.mounts):
            self.script.doing = f"mounting {mount.source} on {mount.destination}"
            if mount.flags & options.REMOUNT:
                self._remount(mount)
            elif mount.bind:
                self._bind(number, mount)
            elif mount.type == "cgroup" and cgroup is not None:
                self._cgroup(mount, cgroup)
            else:
                self._file_system(mount)

    def _bind(self, number: int, mount: Mount) -> None:
        script = self.script
        tree = self._trees[number] if self.early else self._open(number, mount)
        if self.early and self.propagation != options.SHARED:
            base = options.SLAVE if self.propagation == options.SLAVE else options.PRIVATE
            self._attributes(tree, 0, 0, _RECURSIVE, 0, base)
        self._finish(tree, mount)
        try:
            directory = stat.S_ISDIR(os.stat(mount.source).st_mode)
        except OSError as error:
            raise ContainerError(f"{script.doing}: {error.strerror}") from None
        target = self.resolve(mount.destination, directory)
        script.call("move_mount", tree, "", target, "", _BY_FD)
        script.call("close", target)
        script.call("close", tree)

    def _finish(self, fd: Slot, mount: Mount) -> None:
        """Attributes and propagation of a mount that is or isn't attached yet."""
        if mount.bind and (mount.set or mount.clear):
            self._attributes(fd, mount.set, mount.clear)
        if mount.rset or mount.rclear:
            self._attributes(fd, mount.rset, mount.rclear, _RECURSIVE)
        for propagation, below in mount.propagation:
            self._attributes(fd, 0, 0, _RECURSIVE if below else 0, 0, propagation)

    def _reopen(self, path: str) -> Slot:
        """The mount that is on a path now."""
        fd = self.script.slot()
        self.script.call("openat2", self.root, path.lstrip("/"), self._how(_PATH), 24, to=fd)
        return fd

    def _remount(self, mount: Mount) -> None:
        fd = self._reopen(mount.destination)
        if not mount.bind:
            self.script.call("fchdir", fd)
            self.script.call("mount", mount.source, ".", mount.type, mount.flags, mount.data)
        self._finish(fd, mount)
        self.script.call("close", fd)

    def _file_system(self, mount: Mount) -> None:
        script = self.script
        kind = "cgroup2" if mount.type == "cgroup" else mount.type
        data = mount.data
        label = self.linux.get("mountLabel")
        if label and kind not in ("proc", "sysfs", "cgroup2", "mqueue", "devpts"):
            data = f'{data},context="{label}"'.lstrip(",")
        # A link in place of /proc or /sys would have the masks below miss.
        target = self.resolve(mount.destination, True, strict=kind in ("proc", "sysfs"))
        flags = mount.flags
        late = mount.copy_up and flags & options.RDONLY
        script.call("fchdir", target)
        done, bound = Label(), Label()
        tolerate = {EPERM: bound, EINVAL: bound} if kind == "cgroup2" else None
        own = (self.own_cgroup or {}).get("") if kind == "cgroup2" else None
        if not own:
            script.call("mount", mount.source, ".", kind, flags & ~options.RDONLY if late else flags, data, on=tolerate)
            script.jump(done)
        script.bind(bound)
        if tolerate:  # there is no cgroup namespace, or none of the user namespace's own
            tree = script.slot()
            script.call("open_tree", _CWD, own or "/sys/fs/cgroup", _CLONE | _CLOEXEC | _RECURSIVE, to=tree)
            self._attributes(tree, mount.set, mount.clear, _RECURSIVE)
            script.call("move_mount", tree, "", target, "", _BY_FD)
        script.bind(done)
        if mount.copy_up or mount.rset or mount.rclear or mount.propagation:
            top = self._reopen(mount.destination)
            if mount.copy_up:
                self.copies.append((target, top, mount.destination))
                self.copy(len(self.copies) - 1)
            if late:
                self._attributes(top, options.ATTR_RDONLY, 0)
            self._finish(top, mount)
            script.call("close", top)
        script.call("close", target)

    def copy(self, number: int) -> None:
        """Have the runtime copy what a tmpfs covers into it; ``runtime`` sets this."""
        raise NotImplementedError

    def _cgroup(self, mount: Mount, hierarchies: list[tuple[str, str]]) -> None:
        """v1: a folder for each hierarchy, each with the container's cgroup as its root."""
        script = self.script
        target = self.resolve(mount.destination, True)
        script.call("fchdir", target)
        script.call("mount", "tmpfs", ".", "tmpfs", mount.flags & ~options.RDONLY, "mode=755")
        script.call("close", target)
        top = self._reopen(mount.destination)
        for name, data in hierarchies:
            script.doing = f"mounting the cgroup {name} on {mount.destination}/{name}"
            folder = script.slot()  # in our own new tmpfs, that nobody else has seen
            script.call("mkdirat", top, name, 0o755)
            script.call("openat", top, name, _PATH | _DIRECTORY | _NOFOLLOW | _CLOEXEC, 0, to=folder)
            own = (self.own_cgroup or {}).get(data.split(",")[0].replace("none", data.partition(",")[2]))
            if self.own_cgroup is not None and own:
                tree = script.slot()
                script.call("open_tree", _CWD, own, _CLONE | _CLOEXEC, to=tree)
                self._attributes(tree, mount.set, mount.clear)
                script.call("move_mount", tree, "", folder, "", _BY_FD)
                script.call("close", tree)
            elif self.own_cgroup is None:
                script.call("fchdir", folder)
                script.call("mount", "cgroup", ".", "cgroup", mount.flags, data)
            script.call("close", folder)
        for name, _ in hierarchies:
            for part in name.split(",") if "," in name else ():
                skip = Label()
                script.call("symlinkat", name, top, part, on={EEXIST: skip})
                script.bind(skip)
        if mount.flags & options.RDONLY:
            self._attributes(top, options.ATTR_RDONLY, 0)
        script.call("close", top)

    def make_devices(self) -> None:
        """The specification's default devices and links, and the configuration's, where /dev is the container's own."""
        script = self.script
        if any(mount.destination == "/dev" and mount.bind for mount in self.mounts):
            return
        script.doing = "the container's /dev"
        folder = self.resolve("/dev", True)
        asked = {options.inside(device.get("path", "")) for device in self.linux.get("devices") or []}
        for name, major, minor in DEVICES:
            if f"/dev/{name}" not in asked:
                self._device(folder, f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor, 0, 0)
        for device in self.linux.get("devices") or []:
            path, kind = options.inside(device.get("path", "")), device.get("type")
            if kind not in _TYPE or path == "/":
                raise ContainerError(f"config.json: linux.devices: {path} of the type {kind} can't be made")
            mode = _TYPE[kind] | (device.get("fileMode") or 0o666) & 0o7777
            self._device(folder, path, mode, device.get("major", 0), device.get("minor", 0), device.get("uid") or 0,
                         device.get("gid") or 0)  # fmt: skip
        for name, target in _LINKS:
            skip = Label()
            script.call("symlinkat", target, folder, name, on={EEXIST: skip})
            script.bind(skip)
        script.call("close", folder)

    def _device(self, dev: Slot, path: str, mode: int, major: int, minor: int, uid: int, gid: int) -> None:
        script, done = self.script, Label()
        script.doing = f"making {path}"
        if self.own_user:  # no device can be made in a user namespace: the host's, then
            tree, skip = script.slot(), Label()
            optional = path.removeprefix("/dev/") in [name for name, _, _ in DEVICES]
            script.call("open_tree", _CWD, path, _CLONE | _CLOEXEC, to=tree, on={ENOENT: skip} if optional else None)
            self._attributes(tree, options.ATTR_RDONLY, 0)  # its owner and mode; it is written to all the same
            target = self.resolve(path, False)
            script.call("move_mount", tree, "", target, "", _BY_FD)
            script.call("close", target)
            script.call("close", tree)
            script.bind(skip)
            return
        folder, name = os.path.split(path)
        parent = dev if folder == "/dev" else self.resolve(folder, True)
        script.call("mknodat", parent, name, mode, os.makedev(major, minor), on={EEXIST: done})
        if uid or gid:
            script.call("fchownat", parent, name, uid, gid, 0x100)  # AT_SYMLINK_NOFOLLOW
        script.bind(done)
        if parent is not dev:
            script.call("close", parent)

    def protect(self) -> None:
        """Paths that are read-only or not to be seen; then the root itself."""
        script = self.script
        for path in self.linux.get("readonlyPaths") or []:
            script.doing, skip = f"making {path} read-only", Label()
            fd, tree = script.slot(), script.slot()
            inside = options.inside(path).lstrip("/")
            script.call("openat2", self.root, inside, self._how(_PATH), 24, to=fd, on={ENOENT: skip, ENOTDIR: skip})
            script.call("open_tree", fd, "", _CLONE | _CLOEXEC | _RECURSIVE | _EMPTY, to=tree)
            self._attributes(tree, options.ATTR_RDONLY, 0, _RECURSIVE)
            script.call("move_mount", tree, "", fd, "", _BY_FD)
            script.call("close", tree)
            script.call("close", fd)
            script.bind(skip)
        for path in self.linux.get("maskedPaths") or []:
            script.doing, skip, file, done = f"masking {path}", Label(), Label(), Label()
            fd, tree = script.slot(), script.slot()
            inside = options.inside(path).lstrip("/")
            folder = self._how(_PATH | _DIRECTORY)
            script.call("openat2", self.root, inside, folder, 24, to=fd, on={ENOENT: skip, ENOTDIR: file})
            script.call("fchdir", fd)
            label = self.linux.get("mountLabel")
            script.call("mount", "tmpfs", ".", "tmpfs", options.RDONLY, f'context="{label}"' if label else "")
            script.jump(done)
            script.bind(file)
            script.call("openat2", self.root, inside, self._how(_PATH), 24, to=fd, on={ENOENT: skip, ENOTDIR: skip})
            script.call("open_tree", _CWD, "/dev/null", _CLONE | _CLOEXEC, to=tree)
            self._attributes(tree, options.ATTR_RDONLY, 0)  # or its root could change the mode of the host's
            script.call("move_mount", tree, "", fd, "", _BY_FD)
            script.call("close", tree)
            script.bind(done)
            script.call("close", fd)
            script.bind(skip)
        if self.config["root"].get("readonly"):
            script.doing = "making the container's root read-only"
            self._attributes(self.root, options.ATTR_RDONLY, 0)

    def enter(self, no_pivot: bool) -> None:
        """The container's root becomes the root."""
        script = self.script
        script.doing = "entering the container's root" + ("" if no_pivot else " (is it in a ramfs? then --no-pivot)")
        script.call("fchdir", self.root)
        if no_pivot:
            script.call("chroot", ".")  # it is on the host's root already
        else:
            old = script.slot()
            script.call("openat", _CWD, "/", _PATH | _DIRECTORY | _CLOEXEC, 0, to=old)
            script.call("pivot_root", ".", ".")
            script.call("fchdir", old)
            script.call("mount", "", ".", "", options.SLAVE | options.REC, 0)  # what is unmounted here isn't elsewhere
            script.call("umount2", ".", _DETACH)
            script.call("close", old)
        script.call("chdir", "/")
        if self.propagation in (options.SHARED, options.UNBINDABLE):
            below = _RECURSIVE if self.propagation_below else 0
            self._attributes(self.root, 0, 0, below, 0, self.propagation)
        script.call("close", self.root, on={ANY: (done := Label())})
        script.bind(done)


def cgroup_hierarchies() -> list[tuple[str, str]] | None:
    """v1's that the host has, by their folder and the data to mount them with; None where there are none."""
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, data = after.rstrip("\n").split(" ", 2)
            if kind != "cgroup":
                continue
            name = os.path.basename(before.split(" ")[4])
            others = ("rw", "ro", "xattr", "clone_children", "noprefix")
            parts = [part for part in data.split(",") if part not in others]
            parts = [part for part in parts if not part.startswith("release_agent=")]
            text = ",".join(["none", *parts] if parts and parts[0].startswith("name=") else parts)
            if (name, text) not in found:
                found.append((name, text))
    return found or None
