"""A guest's program for tests of vsock, in the subset of Python that images/tiny compiles: ``PROGRAM echo PORT`` takes
connections, one after another, and sends back what comes; ``PROGRAM call PORT`` connects to the host, sends its
input, and prints what comes back. Nothing here ever runs under Python."""

from hostel.images.tiny import buffer, load8, load64, store16, store32, store64, syscall

READ, WRITE, CLOSE, SOCKET, CONNECT, ACCEPT, SHUTDOWN, BIND, LISTEN = 0, 1, 3, 41, 42, 43, 48, 49, 50
AF_VSOCK, STREAM, HOST, ANY = 40, 1, 2, 0xFFFFFFFF

ADDRESS = buffer(16)
DATA = buffer(65536)


def number(string: int) -> int:
    n = 0
    while load8(string):
        n = n * 10 + load8(string) - 48
        string += 1
    return n


def address(cid: int, port: int) -> int:
    store64(ADDRESS, 0)
    store64(ADDRESS + 8, 0)
    store16(ADDRESS, AF_VSOCK)
    store32(ADDRESS + 4, port)
    store32(ADDRESS + 8, cid)
    return ADDRESS


def copy_all(source: int, to: int) -> int:
    while 1:
        n = syscall(READ, source, DATA, 65536)
        if n <= 0:
            return n
        at = 0
        while at < n:
            done = syscall(WRITE, to, DATA + at, n - at)
            if done <= 0:
                return done
            at += done
    return 0


def main(stack: int) -> int:
    port = number(load64(stack + 24))
    sock = syscall(SOCKET, AF_VSOCK, STREAM, 0)
    if sock < 0:
        return 10
    if load8(load64(stack + 16)) == 99:  # call
        if syscall(CONNECT, sock, address(HOST, port), 16) < 0:
            return 11
        if copy_all(0, sock) < 0:
            return 12
        syscall(SHUTDOWN, sock, 1)
        if copy_all(sock, 1) < 0:
            return 13
        return 0
    if syscall(BIND, sock, address(ANY, port), 16) < 0 or syscall(LISTEN, sock, 8) < 0:
        return 14
    syscall(WRITE, 1, address(0, 0), 1)  # it listens
    while 1:
        client = syscall(ACCEPT, sock, 0, 0)
        copy_all(client, client)
        syscall(CLOSE, client)
    return 0
