"""A system call filter: what is not on the list fails with EPERM (seccomp(2), x86-64).

``ALLOWED`` is what a worker needs once its machine is built: memory, threads, clocks and timers, signals to
itself, files below an already restricted view (base/linux/landlock), sockets that exist. ``LIMITED`` calls are allowed
with some arguments only. A process that made io_uring rings before (base/linux/uring) may enter those; their own
restrictions hold what they do. Not on either: exec, fork, new sockets, and all that changes files by name in ways that
Landlock doesn't know (modes, owners, attributes). docs/security.md has the reason for each, and a test holds the two
together. What nobody calls by mistake (``BREACHES``) ends the process: that is seen, where EPERM might not be.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence

from hostel.base.linux.syscall import syscall

_SECCOMP = 317
_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1                      # all threads of the process, not only the caller
_AUDIT_ARCH_X86_64 = 0xC000003E
_RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
_CLONE_THREAD = 0x10000
_FORK = 0x1200011                    # the C library's fork: CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | SIGCHLD
_WRITE_AND_RUN = 6                   # PROT_WRITE | PROT_EXEC

Calls = Mapping[str, int]
Limited = Mapping[str, tuple[int, int, tuple[int, ...]]]

# Numbers from the kernel's arch/x86/entry/syscalls/syscall_64.tbl.
ALLOWED = {
    "futex": 202, "read": 0, "write": 1, "epoll_wait": 232, "ppoll": 271, "recvfrom": 45, "sendto": 44,
    "clock_gettime": 228, "clock_nanosleep": 230, "nanosleep": 35, "rt_sigreturn": 15, "timer_settime": 223,
    "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "preadv": 295, "pwritev": 296, "preadv2": 327, "pwritev2": 328,
    "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "msync": 26,
    "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33, "pause": 34, "getpid": 39, "sendfile": 40, "sendmsg": 46,
    "recvmsg": 47, "shutdown": 48, "getsockname": 51, "getpeername": 52, "setsockopt": 54, "getsockopt": 55,
    "exit": 60, "uname": 63, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "getdents": 78, "getcwd": 79, "rename": 82, "mkdir": 83, "rmdir": 84, "open": 2, "unlink": 87,
    "readlink": 89, "fchmod": 91, "umask": 95, "gettimeofday": 96, "getrusage": 98,
    "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
    "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131,
    "gettid": 186,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "timer_create": 222, "timer_gettime": 224,
    "timer_getoverrun": 225, "timer_delete": 226, "clock_getres": 229, "exit_group": 231, "epoll_ctl": 233,
    "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267,
    "faccessat": 269, "pselect6": 270, "set_robust_list": 273, "get_robust_list": 274,
    "sync_file_range": 277, "epoll_pwait": 281, "timerfd_create": 283, "fallocate": 285, "timerfd_settime": 286,
    "timerfd_gettime": 287,
    "accept4": 288, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "renameat2": 316, "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334,
    "close_range": 436, "faccessat2": 439, "epoll_pwait2": 441,
}
_OWN_PROCESS = {"kill": 62, "tgkill": 234, "rt_tgsigqueueinfo": 297}  # only with our own pid as first argument
# Number, which argument, the values of its low half that are allowed.
LIMITED = {
    "prctl": (157, 0, (1, 15, 0x53564D41)),             # PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_VMA
    "arch_prctl": (158, 0, (0x1001, 0x1004)),           # ARCH_SET_GS, ARCH_GET_GS
    "prlimit64": (302, 0, (0,)),                        # its own
    "ioctl": (16, 1, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
}  # fmt: skip
_MAPPING = {"mmap": 9, "mprotect": 10}  # not both writable and executable
_RINGS = {"io_uring_enter": 426}        # only of rings that are there already
BREACHES = {
    "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "mount": 165,
    "umount2": 166, "pivot_root": 155, "chroot": 161, "move_mount": 429, "fsopen": 430, "open_tree": 428,
    "mount_setattr": 442, "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "keyctl": 250,
    "add_key": 248, "request_key": 249, "io_uring_setup": 425, **_RINGS, "io_uring_register": 427,
    "userfaultfd": 323, "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246,
    "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "iopl": 172, "ioperm": 173,
    "open_by_handle_at": 304, "pidfd_getfd": 438, "pidfd_open": 434, "pidfd_send_signal": 424,
    "process_madvise": 440, "setuid": 105, "setgid": 106, "setresuid": 117, "setresgid": 119, "capset": 126,
    "personality": 135, "quotactl": 179, "acct": 163, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159,
    "sethostname": 170,
}  # fmt: skip
# A network's router (net/process): sockets of the internet's families, and of files only reading, which Landlock
# limits to where resolv.conf is.
NETWORK = {
    name: ALLOWED[name]
    for name in (
        "futex", "read", "write", "readv", "writev", "epoll_wait", "epoll_ctl", "epoll_create1", "eventfd2",
        "recvfrom", "sendto", "sendmsg", "recvmsg", "accept4", "shutdown", "getsockname", "getpeername", "setsockopt",
        "getsockopt", "close", "clock_gettime", "clock_nanosleep", "rt_sigreturn", "rt_sigaction", "rt_sigprocmask",
        "munmap", "mremap", "madvise", "brk", "stat", "fstat", "newfstatat", "statx", "lseek", "openat", "fcntl",
        "getpid", "gettid", "exit", "exit_group", "getrandom", "sched_yield", "restart_syscall", "rseq",
        "set_robust_list", "sigaltstack", "poll",
    )
} | {"connect": 42}
NETWORK_LIMITED = {
    "socket": (41, 0, (2, 10)),                  # AF_INET, AF_INET6
    "socketpair": (53, 0, (1,)),                 # AF_UNIX, with itself: DNS over TCP
    "ioctl": (16, 1, (0x5401, 0x5421, 0x8933)),  # TCGETS, FIONBIO, SIOCGIFINDEX
}
# Who connects to vsock's unix sockets for a worker (vm/broker).
BROKER = {
    name: ALLOWED[name]
    for name in (
        "read", "write", "recvfrom", "recvmsg", "sendto", "sendmsg", "getsockopt", "getsockname", "close", "fcntl",
        "fstat", "munmap", "mremap", "madvise", "brk", "futex", "rt_sigreturn", "rt_sigaction", "rt_sigprocmask",
        "getpid", "gettid", "exit", "exit_group",
    )
} | {"connect": 42}
BROKER_LIMITED = {
    "socket": (41, 0, (1,)),             # AF_UNIX
    "ioctl": (16, 1, (0x5401, 0x5421)),  # TCGETS, FIONBIO
}
# Of a worker that shares folders. All are about descriptors that are open, or make names beneath Landlock's rules.
SHARES = ALLOWED | {"fstatfs": 138, "fgetxattr": 193, "flistxattr": 196}
WRITABLE_SHARES = SHARES | {
    "linkat": 265, "symlinkat": 266, "mknodat": 259, "utimensat": 280, "fsetxattr": 190, "fremovexattr": 199,
    "copy_file_range": 326, "syncfs": 306,
}  # fmt: skip
_WITHOUT_PATH = {"utimensat": 1}             # only if this argument, a path, is NULL: of the descriptor before it
_MODE = {"open": 2, "openat": 3, "fchmod": 1, "mknodat": 2}  # where its mode is
_SET_ID = 0o6000                             # no program is made that others would run as the worker's user
_CLONE = 56
_CLONE3 = 435

_LD_ABS, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # classic BPF opcodes
_OFF_NR, _OFF_ARCH, _OFF_ARG0 = 0, 4, 16                         # in struct seccomp_data


def allowed(calls: Calls = ALLOWED, limited: Limited = LIMITED) -> set[str]:
    """The names of what is allowed, be it with some arguments only."""
    rings = _RINGS if calls is ALLOWED else {}
    return {*calls, *limited, *_MAPPING, *rings, *_OWN_PROCESS, "clone"}


def program(
    pid: int, rings: Sequence[int] = (), calls: Calls = ALLOWED, limited: Limited = LIMITED, forks: bool = False
) -> bytes:
    """The filter, as ``struct sock_filter[]``, for the process ``pid`` with io_uring's descriptors ``rings``; whether
    it ``forks``, into no new namespaces."""
    code: list[tuple[int, int, int, int]] = [
        (_LD_ABS, 0, 0, _OFF_ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH_X86_64),
        (_RET, 0, 0, _RET_KILL_PROCESS),
        (_LD_ABS, 0, 0, _OFF_NR),
        (_JGE, 0, 1, 0x40000000),            # the x32 ABI: other numbers for the same calls
        (_RET, 0, 0, _RET_KILL_PROCESS),
    ]
    for name, number in calls.items():
        if name in _MODE:
            code += [
                (_JEQ, 0, 4, number),
                (_LD_ABS, 0, 0, _OFF_ARG0 + 8 * _MODE[name]),
                (_JSET, 1, 0, _SET_ID),
                (_RET, 0, 0, _RET_ALLOW),
                (_RET, 0, 0, _RET_ERRNO | errno.EPERM),
            ]
            continue
        if name not in _WITHOUT_PATH:
            code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _RET_ALLOW)]
            continue
        path = _OFF_ARG0 + 8 * _WITHOUT_PATH[name]
        code += [
            (_JEQ, 0, 6, number),
            (_LD_ABS, 0, 0, path),
            (_JEQ, 0, 3, 0),
            (_LD_ABS, 0, 0, path + 4),
            (_JEQ, 0, 1, 0),
            (_RET, 0, 0, _RET_ALLOW),
            (_RET, 0, 0, _RET_ERRNO | errno.EPERM),
        ]
    for number, argument, values in limited.values():
        code += [(_JEQ, 0, 2 * len(values) + 2, number), (_LD_ABS, 0, 0, _OFF_ARG0 + 8 * argument)]
        for value in values:
            code += [(_JEQ, 0, 1, value), (_RET, 0, 0, _RET_ALLOW)]
        code += [(_RET, 0, 0, _RET_ERRNO | errno.EPERM)]
    for number in _MAPPING.values():
        code += [
            (_JEQ, 0, 5, number),
            (_LD_ABS, 0, 0, _OFF_ARG0 + 16),
            (_AND, 0, 0, _WRITE_AND_RUN),
            (_JEQ, 1, 0, _WRITE_AND_RUN),
            (_RET, 0, 0, _RET_ALLOW),
            (_RET, 0, 0, _RET_ERRNO | errno.EPERM),
        ]
    for ring in rings:  # a descriptor that isn't a ring's goes on to the breaches
        code += [
            (_JEQ, 0, 3, _RINGS["io_uring_enter"]),
            (_LD_ABS, 0, 0, _OFF_ARG0),
            (_JEQ, 0, 1, ring),
            (_RET, 0, 0, _RET_ALLOW),
            (_LD_ABS, 0, 0, _OFF_NR),
        ]
    for number in BREACHES.values():
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _RET_KILL_PROCESS)]
    # clone3's flags are in memory, where a filter can't look: ENOSYS makes the C library take clone.
    code += [(_JEQ, 0, 1, _CLONE3), (_RET, 0, 0, _RET_ERRNO | errno.ENOSYS)]
    code += [
        (_JEQ, 0, 5, _CLONE),
        (_LD_ABS, 0, 0, _OFF_ARG0),
        (_JEQ, 1, 0, _FORK if forks else _CLONE_THREAD),
        (_JSET, 0, 1, _CLONE_THREAD),
        (_RET, 0, 0, _RET_ALLOW),
        (_RET, 0, 0, _RET_ERRNO | errno.EPERM),
    ]
    for number in _OWN_PROCESS.values():
        code += [
            (_JEQ, 0, 4, number),
            (_LD_ABS, 0, 0, _OFF_ARG0),
            (_JEQ, 0, 1, pid),
            (_RET, 0, 0, _RET_ALLOW),
            (_RET, 0, 0, _RET_ERRNO | errno.EPERM),
        ]
    code += [(_RET, 0, 0, _RET_ERRNO | errno.EPERM)]
    return b"".join(struct.pack("<HBBI", *step) for step in code)


def restrict(
    rings: Sequence[int] = (), calls: Calls = ALLOWED, limited: Limited = LIMITED, forks: bool = False
) -> None:
    """Apply the filter to all threads of this process, for ever; needs ``no_new_privs``."""
    code = program(os.getpid(), rings, calls, limited, forks)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<H6xQ", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    syscall(_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.create_string_buffer(header, len(header)))
