"""A static program that has a warm helper do what ``hostel-oci`` would start Python for.

It is written in the subset of Python that ``images/tiny`` compiles; nothing here runs under Python.
``hostel-oci launcher FILE`` writes it, for an engine's ``--runtime``. It hands its words, folder, environment and
standard descriptors to the helper (``containers/helper``), and ends with the status that it is told. A container's
processes it starts itself, as the helper asks: they are its children, and so its starter's grandchildren, and inherit
what it has, as without a helper. ``start`` and ``delete`` need neither as a rule (``launcher_quick``). Where there is
no helper, or for what lasts or is more than that (run, exec, events,
preserved descriptors), it becomes the interpreter with the whole runtime.

A request: ``COUNT\\0FOLDER\\0WORD\\0...\\0NAME=VALUE\\0...``, with three descriptors. Answers, a packet each: ``n``
do it yourself; ``x`` and a status; ``s``, a count and the numbers that its descriptors are to have, the first being the
program, answered by the child's process ID as 8 bytes.
"""

from hostel.containers import launcher_quick
from hostel.containers.launcher_quick import quick
from hostel.images import agent_bytes
from hostel.images.agent_bytes import begins, same
from hostel.images.tiny import buffer, load8, load32, load64, store8, store32, store64, syscall, text

PARTS = (agent_bytes, launcher_quick)

WRITE, CLOSE, SOCKET, CONNECT, SENDMSG, RECVMSG, CLONE, EXECVE, GETCWD = 1, 3, 41, 42, 46, 47, 56, 59, 79
RT_SIGACTION, RT_SIGPROCMASK, DUP3, EXECVEAT = 13, 14, 292, 322
SOCKET_KIND = 0x80005   # SOCK_SEQPACKET | SOCK_CLOEXEC
CMSG_CLOEXEC, NOSIGNAL = 0x40000000, 0x4000
SIGCHLD, EMPTY_PATH = 17, 0x1000
REQUEST_MAX = 65536
PLACES_MAX = 4096       # of each path that is written in below

request = buffer(65536)
answer = buffer(4096)
message = buffer(64)
vector = buffer(16)
control = buffer(2048)
address = buffer(128)
action = buffer(64)
words = buffer(32768)
used = 0


def put(byte):
    global used
    if used < REQUEST_MAX:
        store8(request + used, byte)
    used = used + 1
    return 0


def put_text(at):
    while load8(at) != 0:
        put(load8(at))
        at = at + 1
    put(0)
    return 0


def put_number(value):
    if value >= 10:
        put_number(value // 10)
    put(48 + value % 10)
    return 0


def short(arguments, count):
    """Whether the command is one that a helper does."""
    number = 1
    while number < count:
        word = load64(arguments + 8 * number)
        if begins(word, text("--preserve-fds")) or begins(word, text("-preserve-fds")):
            return 0
        number = number + 1
    number = 1
    while number < count:
        word = load64(arguments + 8 * number)
        if load8(word) != 45:
            if same(word, text("create")) or same(word, text("start")) or same(word, text("state")):
                return 1
            if same(word, text("kill")) or same(word, text("delete")):
                return 1
            return same(word, text("pause")) or same(word, text("resume"))
        if same(word, text("--root")) or same(word, text("--log")) or same(word, text("--log-format")):
            number = number + 1
        number = number + 1
    return 0


def interpreter(arguments, count, environment):
    """Become the whole runtime: python -ISE -c CODE WORD..."""
    store64(words, text("@PYTHON@"))
    store64(words + 8, text("-ISE"))
    store64(words + 16, text("-c"))
    store64(words + 24, text("@CODE@"))
    number = 1
    while number < count and number < 4000:
        store64(words + 24 + 8 * number, load64(arguments + 8 * number))
        number = number + 1
    store64(words + 24 + 8 * number, 0)
    syscall(EXECVE, text("@PYTHON@"), words, environment)
    complaint = text("hostel-oci: the interpreter that this launcher was written for is gone: write it anew\n")
    syscall(WRITE, 2, complaint, 86)
    return 1


def prepare(bytes_, size, control_size):
    store64(vector, bytes_)
    store64(vector + 8, size)
    store64(message, 0)
    store64(message + 8, 0)
    store64(message + 16, vector)
    store64(message + 24, 1)
    store64(message + 32, control)
    store64(message + 40, control_size)
    store64(message + 48, 0)
    return message


def ask(arguments, count, environment):
    """The connection, with the request sent; -1 without a helper."""
    global used
    path = text("@SOCKET@")
    if load8(path) == 0:
        return 0 - 1
    fd = syscall(SOCKET, 1, SOCKET_KIND, 0)
    store8(address, 1)
    store8(address + 1, 0)
    at = 0
    while load8(path + at) != 0 and at < 107:
        store8(address + 2 + at, load8(path + at))
        at = at + 1
    store8(address + 2 + at, 0)
    if syscall(CONNECT, fd, address, 3 + at) < 0:
        return 0 - 1
    used = 0
    put_number(count - 1)
    put(0)
    if syscall(GETCWD, answer, 4096) < 0:
        return 0 - 1
    put_text(answer)
    number = 1
    while number < count:
        put_text(load64(arguments + 8 * number))
        number = number + 1
    while load64(environment) != 0:
        put_text(load64(environment))
        environment = environment + 8
    if used > REQUEST_MAX:
        return 0 - 1
    store64(control, 28)
    store32(control + 8, 1)
    store32(control + 12, 1)
    store32(control + 16, 0)
    store32(control + 20, 1)
    store32(control + 24, 2)
    store32(control + 28, 0)
    if syscall(SENDMSG, fd, prepare(request, used, 32), NOSIGNAL) < 0:
        return 0 - 1
    return fd


def spawn(count):
    """A child with the descriptors that came, by the numbers in the answer; its process ID."""
    number = 1
    while number < count:
        received = load32(control + 16 + 4 * number)
        syscall(DUP3, received, load32(answer + 4 + 4 * number), 0)
        syscall(CLOSE, received)
        number = number + 1
    program = load32(control + 16)
    child = syscall(CLONE, SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        store64(action, 0)
        store64(action + 8, 0)
        store64(action + 16, 0)
        store64(action + 24, 0)
        number = 1
        while number < 65:
            syscall(RT_SIGACTION, number, action, 0, 8)
            number = number + 1
        syscall(RT_SIGPROCMASK, 2, action, 0, 8)
        store64(words, text("hostel"))
        store64(words + 8, 0)
        syscall(EXECVEAT, program, text(""), words, words + 8, EMPTY_PATH)
        return 0
    number = 1
    while number < count:
        syscall(CLOSE, load32(answer + 4 + 4 * number))
        number = number + 1
    syscall(CLOSE, program)
    return child


def main(stack):
    count = load64(stack)
    arguments = stack + 8
    environment = arguments + 8 * count + 8
    if quick(arguments, count, environment):
        return 0
    fd = 0 - 1
    if short(arguments, count):
        fd = ask(arguments, count, environment)
    if fd < 0:
        return interpreter(arguments, count, environment)
    while 1:
        size = syscall(RECVMSG, fd, prepare(answer, 4096, 2048), CMSG_CLOEXEC)
        if size < 1:
            syscall(WRITE, 2, text("hostel-oci: the helper has ended\n"), 33)
            return 1
        kind = load8(answer)
        if kind == 110:
            syscall(CLOSE, fd)
            return interpreter(arguments, count, environment)
        if kind == 120:
            return load8(answer + 1)
        child = spawn(load8(answer + 1))
        if child == 0:
            return 127
        store64(answer, child)
        syscall(SENDMSG, fd, prepare(answer, 8, 0), NOSIGNAL)
    return 1
