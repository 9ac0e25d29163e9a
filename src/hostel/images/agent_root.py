"""Another root than the initramfs, for all that is run later: ``hostel.root=DEVICE`` on the kernel's command line,
compiled with the agent (`tiny`).

So a micro-VM runs an OCI image: its disk, ext4, becomes the root of the agent's process and of what that starts, with
/proc, /sys, /dev and the resolvers' addresses mounted into it. DHCP clients stay outside, where their program is.
"""

from hostel.images.agent_bytes import append, length
from hostel.images.tiny import buffer, store64, syscall, text

WRITE, OPEN, CLOSE, NANOSLEEP, CHDIR, MKDIR, CHROOT, MOUNT = 1, 2, 3, 35, 80, 83, 161, 165
O_WRONLY_CREAT, O_EXCL, O_CLOEXEC = 0x41, 0x80, 0x80000
MS_BIND, MS_BIND_REC, MS_NOSUID_NODEV = 0x1000, 0x5000, 6
ENOENT, ENXIO = 2, 6
ROOT_DEVICE = buffer(64)
ROOT_PAUSE = buffer(16)
ROOT_HOSTS = buffer(512)


def enter_root(name: int, host: int) -> int:
    """The root is on /dev/``name`` from now on; ``host`` is the machine's name. The errno, or 0."""
    append(append(ROOT_DEVICE, text("/dev/")), name)
    syscall(MKDIR, text("/oci"), 0o755)
    tries = 0
    error = -syscall(MOUNT, ROOT_DEVICE, text("/oci"), text("ext4"), 0, 0)
    while (error == ENOENT or error == ENXIO) and tries < 100:
        pause()
        error = -syscall(MOUNT, ROOT_DEVICE, text("/oci"), text("ext4"), 0, 0)
        tries += 1
    if error:
        return error
    make_file(text("/etc/resolv.conf"), text(""))
    append(append(append(ROOT_HOSTS, text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 ")), host), text("\n"))
    syscall(MKDIR, text("/oci/etc"), 0o755)
    make_file(text("/oci/etc/resolv.conf"), text(""))
    make_file(text("/oci/etc/hosts"), ROOT_HOSTS)
    bind(text("/etc/resolv.conf"), text("/oci/etc/resolv.conf"))
    syscall(MKDIR, text("/oci/proc"), 0o555)
    bind(text("/proc"), text("/oci/proc"))
    syscall(MKDIR, text("/oci/sys"), 0o555)
    bind(text("/sys"), text("/oci/sys"))
    syscall(MKDIR, text("/oci/dev"), 0o755)
    bind(text("/dev"), text("/oci/dev"))
    syscall(MKDIR, text("/dev/.hostel"), 0o700)  # the way back, for who starts a DHCP client anew
    syscall(MOUNT, text("/"), text("/oci/dev/.hostel"), 0, MS_BIND, 0)
    syscall(MOUNT, text("shm"), text("/oci/dev/shm"), text("tmpfs"), MS_NOSUID_NODEV, text("mode=1777"))
    syscall(MKDIR, text("/oci/tmp"), 0o1777)
    syscall(MKDIR, text("/oci/run"), 0o755)
    error = -syscall(CHROOT, text("/oci"))
    syscall(CHDIR, text("/"))
    return error


def bind(source: int, target: int) -> int:
    return syscall(MOUNT, source, target, 0, MS_BIND_REC, 0)


def make_file(path: int, content: int) -> int:
    """Where there is none yet; a link isn't followed, as O_EXCL has it."""
    fd = syscall(OPEN, path, O_WRONLY_CREAT | O_EXCL | O_CLOEXEC, 0o644)
    if fd >= 0:
        syscall(WRITE, fd, content, length(content))
        syscall(CLOSE, fd)
    return 0


def pause() -> int:
    """20 ms."""
    store64(ROOT_PAUSE + 8, 20000000)
    return syscall(NANOSLEEP, ROOT_PAUSE, 0)
