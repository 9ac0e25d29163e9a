"""What runs between a container's clone and its exec: a list of system calls, and 300 bytes of machine code for them.

No Python, no C library and no file of the container's is involved: the runtime writes down, in the host's namespaces,
every system call that the new process has to make (a ``Script``), and turns the list into a static ELF program with the
list as its data. That is executed from a sealed memfd; so ``/proc/PID/exe`` shows a container nothing but this
program, which nobody can write to (CVE-2019-5736), and a container's first process costs a few pages.

An operation is a system call's number and six arguments; where its result is stored; and where to go on: ``next``,
elsewhere where the result is 0 (``zero``), elsewhere for two values of errno (``on``; ``ANY`` is any). An error that
has no such place ends the program: it writes the operation's address and the result to the report's descriptor, from
which ``Script.explain`` makes a sentence. Results of one operation are arguments of later ones through a ``Slot``.
"""

import os
import struct
from errno import EIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPS, DATA, TEXT = 0x1000_0000, 0x2000_0000, 0x40_0000  # where the parts of the program are
_FIELDS = 14          # of an operation, 8 bytes each
_SIZE = 8 * _FIELDS
_PAGE = 4096
ANY = -1  # in ``on``: any errno
_SET, _TEST, _COPY, _FAULT = -1, -2, -3, -4  # operations that aren't system calls
_FALSE = 1000  # what a failed test gives as an errno; above the kernel's
_REPORT = DATA  # where the program puts its report

# Numbers from the kernel's arch/x86/entry/syscalls/syscall_64.tbl.
NR = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "rt_sigprocmask": 14, "ioctl": 16, "dup2": 33, "getpid": 39,
    "sendmsg": 46, "socket": 41, "clone": 56, "execve": 59, "exit": 60, "wait4": 61, "kill": 62, "getcwd": 79,
    "chdir": 80, "fchdir": 81, "fchown": 93, "umask": 95, "setsid": 112, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "capset": 126, "personality": 135, "prctl": 157, "pivot_root": 155, "chroot": 161, "mount": 165,
    "umount2": 166, "sethostname": 170, "setdomainname": 171, "exit_group": 231, "keyctl": 250, "ioprio_set": 251,
    "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "symlinkat": 266, "faccessat": 269, "ppoll": 271,
    "unshare": 272, "dup3": 292, "prlimit64": 302, "setns": 308, "sched_setattr": 314, "seccomp": 317,
    "open_tree": 428, "move_mount": 429, "pidfd_open": 434, "close_range": 436, "openat2": 437, "mount_setattr": 442,
    "fchmod": 91, "sched_setaffinity": 203,
}  # fmt: skip

# rbx is the operation's address. Each row: the bytes and what they are; a test disassembles them.
CODE = (
    ("bb00000010", "mov ebx, 0x10000000"),
    # next:
    ("488b03", "mov rax, qword ptr [rbx]"),
    ("488b7b08", "mov rdi, qword ptr [rbx + 8]"),
    ("488b7310", "mov rsi, qword ptr [rbx + 0x10]"),
    ("488b5318", "mov rdx, qword ptr [rbx + 0x18]"),
    ("4c8b5320", "mov r10, qword ptr [rbx + 0x20]"),
    ("4c8b4328", "mov r8, qword ptr [rbx + 0x28]"),
    ("4c8b4b30", "mov r9, qword ptr [rbx + 0x30]"),
    ("4885c0", "test rax, rax"),
    ("{js special}", "js"),
    ("0f05", "syscall"),
    # done:
    ("488b4b38", "mov rcx, qword ptr [rbx + 0x38]"),
    ("4885c9", "test rcx, rcx"),
    ("{je kept}", "je"),
    ("488901", "mov qword ptr [rcx], rax"),
    # kept:
    ("483d01f0ffff", "cmp rax, -0xfff"),
    ("{jae error}", "jae"),
    ("4885c0", "test rax, rax"),
    ("{jne forward}", "jne"),
    ("488b4b48", "mov rcx, qword ptr [rbx + 0x48]"),
    ("4885c9", "test rcx, rcx"),
    ("{jne jump}", "jne"),
    # forward:
    ("488b4b40", "mov rcx, qword ptr [rbx + 0x40]"),
    # jump:
    ("4889cb", "mov rbx, rcx"),
    ("{jmp next}", "jmp"),
    # error:
    ("4889c2", "mov rdx, rax"),
    ("48f7da", "neg rdx"),
    ("488b4b58", "mov rcx, qword ptr [rbx + 0x58]"),
    ("483b5350", "cmp rdx, qword ptr [rbx + 0x50]"),
    ("{je jump}", "je"),
    ("488b4b68", "mov rcx, qword ptr [rbx + 0x68]"),
    ("483b5360", "cmp rdx, qword ptr [rbx + 0x60]"),
    ("{je jump}", "je"),
    ("488b4b58", "mov rcx, qword ptr [rbx + 0x58]"),
    ("48837b50ff", "cmp qword ptr [rbx + 0x50], -1"),
    ("{je jump}", "je"),
    # the report, and the end
    ("48891c2500000020", "mov qword ptr [0x20000000], rbx"),
    ("4889042508000020", "mov qword ptr [0x20000008], rax"),
    ("b801000000", "mov eax, 1"),
    ("488b3c2510000020", "mov rdi, qword ptr [0x20000010]"),
    ("be00000020", "mov esi, 0x20000000"),
    ("ba10000000", "mov edx, 0x10"),
    ("0f05", "syscall"),
    ("b8e7000000", "mov eax, 0xe7"),
    ("8b3c2518000020", "mov edi, dword ptr [0x20000018]"),
    ("0f05", "syscall"),
    # special:
    ("4883f8ff", "cmp rax, -1"),
    ("{je set}", "je"),
    ("4883f8fe", "cmp rax, -2"),
    ("{je compare}", "je"),
    ("4883f8fd", "cmp rax, -3"),
    ("{je copy}", "je"),
    ("48c7c0fbffffff", "mov rax, 0xfffffffffffffffb"),
    ("{jmp done}", "jmp"),
    # copy:
    ("488b36", "mov rsi, qword ptr [rsi]"),
    # set:
    ("488937", "mov qword ptr [rdi], rsi"),
    ("b801000000", "mov eax, 1"),
    ("{jmp done}", "jmp"),
    # compare:
    ("488b3f", "mov rdi, qword ptr [rdi]"),
    ("4821f7", "and rdi, rsi"),
    ("b801000000", "mov eax, 1"),
    ("4839d7", "cmp rdi, rdx"),
    ("{je done}", "je"),
    ("48c7c018fcffff", "mov rax, 0xfffffffffffffc18"),
    ("{jmp done}", "jmp"),
)
# The names above, by the number of the row that they stand before.
_LABELS = {
    "next": 1, "done": 11, "kept": 15, "forward": 22, "jump": 23, "error": 25, "special": 46, "copy": 54, "set": 55,
    "compare": 58,
}  # fmt: skip
_BRANCH = {"js": "0f88", "je": "0f84", "jae": "0f83", "jne": "0f85", "jmp": "e9"}

# Tests make the operation of this number fail; see tests/containers/test_faults.py.
fault: int | None = None


# In a helper's fork: who starts programs in our place; its ``first`` is the least number of a descriptor to keep.
elsewhere: "Any" = None


def to_keep(fd: int) -> int:
    """The descriptor by a number that it can have in the program, too."""
    if elsewhere is None or fd >= elsewhere.first:
        return fd
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, elsewhere.first)
    os.close(fd)
    return moved


def reap(pid: int) -> int:
    """A program's status, 0 where it is another's child."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        if elsewhere is None:
            raise
        return 0


def _machine_code() -> bytes:
    """``CODE`` with its branches."""
    rows: list[tuple[bytes, str]] = []
    for text, _ in CODE:
        if text[0] == "{":
            branch, _, label = text[1:-1].partition(" ")
            rows.append((bytes.fromhex(_BRANCH[branch]), label))
        else:
            rows.append((bytes.fromhex(text), ""))
    at, places = 0, []
    for code, label in rows:
        places.append(at)
        at += len(code) + (4 if label else 0)
    out = bytearray()
    for code, label in rows:
        out += code
        if label:
            out += struct.pack("<i", places[_LABELS[label]] - len(out) - 4)
    return bytes(out)


class Slot:
    """Where a result is kept: 8 bytes of the program's data."""

    __slots__ = ("address",)

    def __init__(self, address: int):
        self.address = address


class Label:
    """A place in the list, known or yet to come."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        self.index: int | None = None


Argument = int | str | bytes | Slot


class Script:
    """The list as it is being written. ``report`` is the descriptor that a failure is written to."""

    def __init__(self, report: int, status: int = 1):
        self.data = bytearray(struct.pack("<qqqq", 0, 0, report, status))
        self._flat: list[int] = []                      # operations, _FIELDS numbers each
        self._later: list[tuple[int, Label]] = []       # where in them an operation's address is missing
        self._what: list[str] = []
        self._strings: dict[bytes, int] = {}
        self._constants: dict[bytes, int] = {}
        self.doing = ""  # what the operations that follow are for, as errors have it

    def place(self, content: bytes, align: int = 8) -> int:
        """The address of a copy of ``content`` that operations may change."""
        self.data += bytes(-len(self.data) % align)
        address = DATA + len(self.data)
        self.data += content
        return address

    def constant(self, content: bytes) -> int:
        """The same where nothing changes it: once for all that are alike."""
        address = self._constants.get(content)
        if address is None:
            address = self._constants[content] = self.place(content)
        return address

    def text(self, value: str | bytes) -> int:
        """The address of a string that ends with a zero."""
        raw = os.fsencode(value) if isinstance(value, str) else value
        address = self._strings.get(raw)
        if address is None:
            address = self._strings[raw] = self.place(raw + b"\0", 1)
        return address

    def slot(self) -> Slot:
        return Slot(self.place(bytes(8)))

    def pointers(self, values: list[str]) -> int:
        """A ``char *[]`` that ends with NULL, as execve wants."""
        return self.place(b"".join(struct.pack("<q", self.text(value)) for value in values) + bytes(8))

    def bind(self, label: Label) -> None:
        label.index = len(self._what)

    def __len__(self) -> int:
        return len(self._what)

    def _append(self, nr: int, a0: int, a1: int, a2: int = 0, label: Label | None = None) -> None:
        """One without system call; ``label``: where it goes on."""
        self._what.append(self.doing)
        if label:
            self._later.append((len(self._flat) + 8, label))
        self._flat += (nr, a0, a1, a2, 0, 0, 0, 0, OPS + len(self._what) * _SIZE, 0, 0, 0, 0, 0)

    def call(
        self, name: str, *args: Argument, to: Slot | None = None, zero: Label | None = None,
        on: dict[int, Label] | None = None, what: str = "",
    ) -> None:  # fmt: skip
        """A system call. Strings are passed by address; ``what`` says in an error what it was for."""
        values = [NR[name], 0, 0, 0, 0, 0, 0]
        slots: list[tuple[int, Slot]] = []
        for number, arg in enumerate(args, 1):
            if isinstance(arg, int):
                values[number] = arg
            elif isinstance(arg, Slot):
                slots.append((number, arg))
            else:
                values[number] = self.text(arg)
        operation = OPS + (len(self._what) + len(slots)) * _SIZE
        for number, slot in slots:
            self._append(_COPY, operation + 8 * number, slot.address)
        flat = self._flat
        start = len(flat)
        flat += values
        flat += (to.address if to else 0, operation + _SIZE, 0, 0, 0, 0, 0)
        self._what.append(what or self.doing)
        if zero:
            self._later.append((start + 9, zero))
        if on:
            at = start + 10
            for errno, label in on.items():
                flat[at] = errno
                self._later.append((at + 1, label))
                at += 2

    def set(self, address: int, value: int) -> None:
        self._append(_SET, address, value)

    def copy(self, address: int, slot: Slot) -> None:
        self._append(_COPY, address, slot.address)

    def test(self, address: int, mask: int, value: int, otherwise: Label | None = None, what: str = "") -> None:
        """Go on where the 8 bytes at the address, masked, are the value; ``otherwise``, or fail."""
        self._append(_TEST, address, mask - (1 << 64) if mask >= 1 << 63 else mask, value)
        if what:
            self._what[-1] = what
        if otherwise:
            self._flat[-4] = _FALSE
            self._later.append((len(self._flat) - 3, otherwise))

    def jump(self, label: Label) -> None:
        self._append(_SET, _REPORT, 0, label=label)

    def explain(self, operation: int, result: int) -> str:
        """What failed and why, from a report."""
        number = (operation - OPS) // _SIZE
        what = self._what[number] if 0 <= number < len(self._what) else "the container's start"
        return what if -result == _FALSE else f"{what}: {os.strerror(-result)}"

    def program(self) -> bytes:
        """The ELF program."""
        code = _machine_code()
        flat = self._flat
        for at, label in self._later:
            assert label.index is not None, "a jump to a label that was never bound"
            flat[at] = OPS + label.index * _SIZE
        if fault is not None and fault < len(self._what):
            flat[fault * _FIELDS] = _FAULT
        ops = struct.pack(f"<{len(flat)}q", *flat)
        header = 64 + 4 * 56
        text_at = header
        ops_at = -(-(text_at + len(code)) // _PAGE) * _PAGE
        data_at = -(-(ops_at + len(ops)) // _PAGE) * _PAGE
        out = bytearray(
            struct.pack(
                "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, TEXT + text_at, 64, 0, 0, 64, 56, 4, 0, 0, 0
            )
        )
        for flags, offset, address, size in (
            (5, 0, TEXT, text_at + len(code)), (6, ops_at, OPS, len(ops)), (6, data_at, DATA, len(self.data)),
        ):  # fmt: skip
            out += struct.pack("<IIQQQQQQ", 1, flags, offset, address, address, size, size, _PAGE)
        out += struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # PT_GNU_STACK: not executable
        out += code
        out += bytes(ops_at - len(out))
        out += ops
        out += bytes(data_at - len(out))
        out += self.data
        return bytes(out)


_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 16
_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF  # seal, shrink, grow, write


def memfd(content: bytes, executable: bool = False) -> int:
    """A descriptor of a sealed copy of ``content``."""
    import fcntl

    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("hostel", flags | (_MFD_EXEC if executable else 0))
    except OSError:  # before Linux 6.3 every memfd was executable
        fd = os.memfd_create("hostel", flags)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view):]
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def launch(
    script: Script, keep: list[int], stdio: "tuple[int, int, int] | None" = None, here: bool = False
) -> int:
    """Start the script's program as a child, with the standard descriptors and ``keep``; its process ID. In a helper
    (``elsewhere``) it is a launcher's child, unless it is to be ``here``."""
    fd = memfd(script.program(), executable=True)
    if elsewhere is not None and not here:
        try:
            return elsewhere(fd, keep)
        finally:
            os.close(fd)
    try:
        for kept in keep:
            os.set_inheritable(kept, True)
        signals = [number for number in range(1, 65) if number not in (9, 19, 32, 33)]
        # /proc is the host's: we are in its namespaces.
        actions = [(os.POSIX_SPAWN_DUP2, given, number) for number, given in enumerate(stdio or ())]
        return os.posix_spawn(
            f"/proc/self/fd/{fd}", ["hostel"], {}, file_actions=actions, setsigdef=signals, setsigmask=()
        )
    finally:
        for kept in keep:
            os.set_inheritable(kept, False)
        os.close(fd)


def stragglers(name: str) -> list[int]:
    """Our children that have called themselves so (PR_SET_NAME): clones of which nobody could tell us."""
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                children = file.read().split()
        except OSError:
            continue
        for child in children:
            try:
                with open(f"/proc/{child}/comm") as file:
                    if file.read() == name + "\n":
                        found.append(int(child))
            except OSError:
                continue
    return found


def closed_gaps(script: Script, keep: list[int], first: int = 3) -> None:
    """Close every descriptor from ``first`` on but ``keep``: what our starter left open is nobody's business inside."""
    for fd in sorted(set(keep)) + [0xFFFFFFFF]:
        if fd > first:
            script.call("close_range", first, fd - (1 if fd != 0xFFFFFFFF else 0), 0, what="closing descriptors")
        first = fd + 1


assert EIO == 5  # what an injected fault gives, in CODE
