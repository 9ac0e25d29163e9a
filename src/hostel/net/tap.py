"""Taps: network interfaces of the host's whose wire is a file descriptor of frames (tuntap.rst of the kernel).

A tap that is made here has no other owner than its descriptors: when the last of them is closed, by whatever
death of the process, the kernel removes it. One that exists already (``ip tuntap add ... user ...``) stays.
Each frame comes and goes behind the 12 bytes of ``virtio_net_hdr_v1``, and the host's stack is told to leave
large segments and checksums to us: who can't take them has them done in devices/virtio/offload.

Interfaces are made and joined to bridges by ioctls; both need CAP_NET_ADMIN, unless the tap is the user's own.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct

from hostel.base.errors import MachineError

HEADER = 12  # bytes of virtio_net_hdr_v1, with num_buffers (virtio 1.2, 5.1.6)

# linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETVNETLE = 0x400454CA, 0x400454D0, 0x400454D8, 0x400454DC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_ECN, _TUN_F_UFO, _TUN_F_USO4, _TUN_F_USO6 = 1, 2, 4, 8, 16, 32, 64
# linux/sockios.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU, _SIOCGIFINDEX, _SIOCBRADDIF = 0x8913, 0x8914, 0x8922, 0x8933, 0x89A2
_IFF_UP = 1
_IFREQ = 40

# What the host may give us and what it takes, best first: USO came with Linux 6.2, UFO went and came back.
_EVERY = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_ECN
_OFFLOADS = (_EVERY | _TUN_F_UFO | _TUN_F_USO4 | _TUN_F_USO6, _EVERY | _TUN_F_UFO, _EVERY, 0)


class Tap:
    """One tap, with a descriptor (non-blocking) for each of its queues. ``name`` may end with ``%d``."""

    def __init__(self, name: str, queues: int = 1):
        self.fds: list[int] = []
        self.ufo = self.uso = False
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
        try:
            for _ in range(queues):
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self.fds.append(fd)
                answer = fcntl.ioctl(fd, _TUNSETIFF, struct.pack(f"16sH{_IFREQ - 18}x", name.encode(), flags))
                name = answer[:16].rstrip(b"\0").decode()
                fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER))
                fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("i", 1))
                offloads = self._offer(fd)
            self.ufo, self.uso = bool(offloads & _TUN_F_UFO), bool(offloads & _TUN_F_USO4)
        except OSError as error:
            self.close()
            raise MachineError(f"can't open the tap {name}: {_why(error)}") from error
        self.name = name

    @staticmethod
    def _offer(fd: int) -> int:
        """Have large segments and unfinished checksums come in, as far as the kernel knows them."""
        for offloads in _OFFLOADS:
            with contextlib.suppress(OSError):
                fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
                return offloads
        return 0

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def set_up(name: str, mtu: int | None = None) -> None:
    """Bring the interface up."""
    try:
        if mtu is not None:
            _interface(_SIOCSIFMTU, name, struct.pack("i", mtu))
        flags = struct.unpack_from("H", _interface(_SIOCGIFFLAGS, name))[0]
        if not flags & _IFF_UP:
            _interface(_SIOCSIFFLAGS, name, struct.pack("H", flags | _IFF_UP))
    except OSError as error:
        raise MachineError(f"can't bring {name} up: {_why(error)}") from error


def join_bridge(name: str, bridge: str) -> None:
    """Make the interface one of the bridge's ports."""
    try:
        index = struct.unpack_from("i", _interface(_SIOCGIFINDEX, name))[0]
        _interface(_SIOCBRADDIF, bridge, struct.pack("i", index))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise MachineError(f"there is no bridge {bridge} on this host") from None
        if error.errno == errno.EOPNOTSUPP:
            raise MachineError(f"{bridge} is no bridge") from None
        raise MachineError(f"can't join {name} to the bridge {bridge}: {_why(error)}") from error


def exists(name: str) -> bool:
    try:
        _interface(_SIOCGIFINDEX, name)
    except OSError:
        return False
    return True


def _interface(request: int, name: str, value: bytes = b"") -> bytes:
    """An ioctl on ``struct ifreq``; what stands behind the name afterwards."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        answer = fcntl.ioctl(sock, request, struct.pack("16s24s", name.encode(), value))
    return answer[16:]


def _why(error: OSError) -> str:
    if error.errno == errno.EACCES:
        return "you may not open /dev/net/tun; root can let everybody: chmod 666 /dev/net/tun"
    if error.errno == errno.EPERM:
        return "permission denied; it takes root, or a tap that 'ip tuntap add NAME mode tap user YOU' has made"
    if error.errno == errno.EBUSY:
        return "another program has it"
    if error.errno == errno.ENOENT:
        return "this host has no /dev/net/tun; 'modprobe tun' may bring it"
    if error.errno == errno.EINVAL:
        return "it exists and is no such tap (queues=N wants one made with 'multi_queue')"
    return str(error.strerror)
