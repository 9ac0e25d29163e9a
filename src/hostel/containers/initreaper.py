"""Process 1 of a container with ``--init``: starts the command, passes signals on to it, and reaps what nobody else
waits for. In the subset of Python that `tiny` compiles to a static program: a container's image has nothing of ours.

    init [-c FOLDER] [-u UID:GID[:GROUP...]] [-r ROOT] -- COMMAND [ARGUMENT...]

``-r`` makes ROOT the root first, then come user and folder: so a micro-VM runs an OCI image's command. The command is
looked for in PATH. It leads its own session's foreground process group where there is a terminal. The exit status is
the command's, or 128 + its signal; 127 where there is no such program, 126 where it can't be run.
"""

from hostel.images import agent_bytes
from hostel.images.agent_bytes import begins, length, number, same
from hostel.images.tiny import buffer, copy, load8, load32, load64, store8, store32, store64, syscall, text

PARTS = (agent_bytes,)

RT_SIGPROCMASK, DUP2, IOCTL, GETPID, CLONE, EXECVE, EXIT, WAIT4, KILL, CHDIR = 14, 33, 16, 39, 56, 59, 60, 61, 62, 80
SETUID, SETGID, SETPGID, SETGROUPS, CHROOT, READ, WRITE, SIGNALFD4 = 105, 106, 109, 116, 161, 0, 1, 289
SIGCHLD, SIGTTIN, SIGTTOU, WNOHANG = 17, 21, 22, 1
TIOCSPGRP = 0x5410
ENOENT, EACCES, ENOTDIR = 2, 13, 20
EVERY = buffer(8)
INFO = buffer(128)
STATUS = buffer(16)
GROUPS = buffer(4096)
WAY = buffer(8192)
PGRP = buffer(8)

where = 0
uid = -1
gid = -1
groups = 0


def digits(at: int) -> int:
    """Behind the digits there."""
    while load8(at) >= 48 and load8(at) <= 57:
        at += 1
    return at


def user(at: int) -> int:
    """UID:GID[:GROUP...]"""
    global uid, gid, groups
    uid = number(at)
    at = digits(at)
    if load8(at) == 58:
        gid = number(at + 1)
        at = digits(at + 1)
    while load8(at) == 58 and groups < 1000:
        store32(GROUPS + 4 * groups, number(at + 1))
        groups += 1
        at = digits(at + 1)
    return 0


def tell(words: int) -> int:
    return syscall(WRITE, 2, words, length(words))


def run(argv: int, envp: int) -> int:
    """Become the command: as it is, or in one of PATH's folders. The errno that counts."""
    name = load64(argv)
    at = name
    while load8(at):
        if load8(at) == 47:
            return -syscall(EXECVE, name, argv, envp)
        at += 1
    path = text("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    at = envp
    while load64(at):
        if begins(load64(at), text("PATH=")):
            path = begins(load64(at), text("PATH="))
        at += 8
    error = ENOENT
    while load8(path):
        n = 0
        while load8(path) and load8(path) != 58:
            if n < 4000:
                store8(WAY + n, load8(path))
                n += 1
            path += 1
        if load8(path) == 58:
            path += 1
        if not n:
            store8(WAY, 46)
            n = 1
        store8(WAY + n, 47)
        if length(name) < 4000:
            copy(WAY + n + 1, name, length(name) + 1)
            got = -syscall(EXECVE, WAY, argv, envp)
            if got != ENOENT and got != ENOTDIR:
                error = got
    return error


def child(argv: int, envp: int) -> int:
    syscall(SETPGID, 0, 0)
    store64(PGRP, syscall(GETPID))
    syscall(IOCTL, 0, TIOCSPGRP, PGRP)  # where that is a terminal; SIGTTOU is blocked
    if gid >= 0:
        if syscall(SETGROUPS, groups, GROUPS) < 0 or syscall(SETGID, gid) < 0:
            tell(text("hostel-init: can't become that group\n"))
            return 126
    if uid >= 0 and syscall(SETUID, uid) < 0:
        tell(text("hostel-init: can't become that user\n"))
        return 126
    if where and syscall(CHDIR, where) < 0:
        tell(text("hostel-init: there is no folder "))
        tell(where)
        tell(text("\n"))
        return 126
    store64(EVERY, 0)
    syscall(RT_SIGPROCMASK, 2, EVERY, 0, 8)
    error = run(argv, envp)
    tell(load64(argv))
    if error == ENOENT or error == ENOTDIR:
        tell(text(": there is no such program\n"))
        return 127
    tell(text(": it can't be run\n"))
    return 126


def main(stack: int) -> int:
    global where
    argc = load64(stack)
    argv = stack + 8
    envp = argv + 8 * (argc + 1)
    at = argv + 8
    while load64(at) and not same(load64(at), text("--")):
        option = load8(load64(at) + 1)
        value = load64(at + 8)
        if load8(load64(at)) != 45 or not value:
            return 125
        if option == 99:
            where = value
        elif option == 117:
            user(value)
        elif option == 114:
            if syscall(CHROOT, value) < 0 or syscall(CHDIR, text("/")) < 0:
                tell(text("hostel-init: can't enter the image's root\n"))
                return 126
        at += 16
    at += 8
    if not load64(at):
        return 125
    store64(EVERY, -1)
    syscall(RT_SIGPROCMASK, 2, EVERY, 0, 8)
    signals = syscall(SIGNALFD4, -1, EVERY, 8, 0x80000)
    pid = syscall(CLONE, SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        syscall(EXIT, child(at, envp))
    if pid < 0:
        tell(text("hostel-init: can't start the command\n"))
        return 126
    while 1:
        if syscall(READ, signals, INFO, 128) < 128:
            continue
        which = load32(INFO)
        if which == SIGCHLD:
            ended = syscall(WAIT4, -1, STATUS, WNOHANG, 0)
            while ended > 0:
                if ended == pid:
                    status = load32(STATUS)
                    if status & 127:
                        return 128 + (status & 127)
                    return status >> 8 & 255
                ended = syscall(WAIT4, -1, STATUS, WNOHANG, 0)
        elif which != SIGTTIN and which != SIGTTOU:
            syscall(KILL, pid, which)
    return 0
