"""Which devices a container may open and make: v1's device lists, v2's eBPF program.

Rules are read in order, a later one wins over an earlier one, and what no rule is about is denied (runtime-spec,
config-linux.md, "Allowed Device list"). Read, write and mknod are decided each for itself.

v1 keeps a default and a list of exceptions to it, so it can't say "all of a major number but this one": that is refused
there by name. eBPF says everything.
"""

import os

from hostel.base.errors import ContainerError
from hostel.containers.cgroups.resources import refuse
from hostel.containers.cgroups.setting import put, read

MKNOD, READ, WRITE = 1, 2, 4    # BPF_DEVCG_ACC_*
_ALL = MKNOD | READ | WRITE
_BITS = {"m": MKNOD, "r": READ, "w": WRITE}
_TYPES = {"b": 1, "c": 2}       # BPF_DEVCG_DEV_*
_MAX_RULES = 400                # of some 6 instructions each; the kernel's oldest bound is 4096


# What every container has, after its own rules: mknod of anything (which gives no access), and the devices that the
# specification has in every /dev.
DEFAULT: list[dict] = [
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in (
            (1, 3), (1, 5), (1, 7), (1, 8), (1, 9),     # null, zero, full, random, urandom
            (5, 0), (5, 2), (136, None),                # tty, ptmx, pts
        )
    ),
]  # fmt: skip

Key = tuple[str, int | None, int | None]


def rows(rules: list[dict]) -> list[tuple[bool, Key, int]]:
    """Checked: whether it allows, type (``a`` for both) and numbers, and bits of access. Raises ContainerError."""
    result: list[tuple[bool, Key, int]] = []
    for rule in rules:
        kind = rule.get("type") or "a"
        access = rule.get("access") or "rwm"
        if kind not in ("a", "b", "c") or set(access) - set(_BITS):
            raise refuse("devices", f"type '{kind}', access '{access}': types are a, b, c, access some of r, w, m")
        major, minor = (None if number in (None, -1) else number for number in (rule.get("major"), rule.get("minor")))
        if not 0 <= (major or 0) < 1 << 31 or not 0 <= (minor or 0) < 1 << 31:
            raise refuse("devices", f"{major}:{minor} are no numbers of a device's")
        bits = sum(_BITS[letter] for letter in set(access))
        result.append((rule.get("allow", False), (kind, major, minor), bits))
    if len(result) > _MAX_RULES:
        raise refuse("devices", f"{len(result)} rules; {_MAX_RULES} are the most")
    return result


def _covers(wide: Key, narrow: Key) -> bool:
    return all(w == n or w is None or w == "a" for w, n in zip(wide, narrow, strict=True))


def _overlap(one: Key, other: Key) -> bool:
    return all(a == b or None in (a, b) or "a" in (a, b) for a, b in zip(one, other, strict=True))


def lists(rules: list[dict]) -> tuple[bool, dict[Key, int]]:
    """For v1: whether all is allowed, and the exceptions to that. Raises ContainerError for what v1 can't say."""
    allowed, exceptions = False, dict[Key, int]()
    for allow, key, bits in rows(rules):
        if key == ("a", None, None) and bits == _ALL:
            allowed, exceptions = allow, {}
            continue
        for kind in ("c", "b") if key[0] == "a" else (key[0],):
            one: Key = (kind, *key[1:])
            if allow != allowed:
                exceptions[one] = exceptions.get(one, 0) | bits
                continue
            for other, has in list(exceptions.items()):
                if not has & bits:
                    continue
                if _covers(one, other):
                    exceptions[other] = has & ~bits
                elif _overlap(one, other):
                    word = "denies" if allowed is False else "allows"
                    raise refuse(
                        "devices", f"a rule {word} {_line(one, bits)}, which is a part of {_line(other, has)} before"
                        " it; cgroup v1 can't do that"
                    )
    return allowed, {key: bits for key, bits in exceptions.items() if bits}


def _line(key: Key, bits: int) -> str:
    kind, major, minor = key
    numbers = ":".join("*" if number is None else str(number) for number in (major, minor))
    return f"{kind} {numbers} " + "".join(letter for letter in "rwm" if bits & _BITS[letter])


def write_lists(folder: str, rules: list[dict]) -> None:
    """v1. Between two lists of allowed devices only what differs is written: a running container doesn't lose, for a
    moment, what it keeps. Raises OSError, ContainerError."""
    allowed, wanted = lists(rules)
    now = listed(folder)
    if allowed or now is None:
        put(folder, "devices.allow" if allowed else "devices.deny", "a")
        now = {}
    changes = {key: (now.get(key, 0), wanted.get(key, 0)) for key in now | wanted}
    for key, (has, wants) in changes.items():
        if wants & ~has:
            put(folder, "devices.deny" if allowed else "devices.allow", _line(key, wants & ~has))
        if has & ~wants:
            put(folder, "devices.deny", _line(key, has & ~wants))


def listed(folder: str) -> dict[Key, int] | None:
    """What v1's cgroup allows; ``None``: all, but exceptions that the kernel doesn't tell."""
    result: dict[Key, int] = {}
    for line in (read(folder, "devices.list") or "").splitlines():
        kind, numbers, access = line.split()
        if kind == "a":
            return None
        major, minor = (None if part == "*" else int(part) for part in numbers.split(":"))
        result[kind, major, minor] = sum(_BITS[letter] for letter in access)
    return result


def program(rules: list[dict]) -> bytes:
    """For v2. Its context is ``struct bpf_cgroup_dev_ctx``: access << 16 | type, major, minor."""
    from hostel.base.linux import bpf  # ctypes takes 8 ms, which only hosts with v2 need

    context, undecided, kind, major, minor = 1, 2, 3, 4, 5  # registers
    asm = bpf.Assembler()
    asm.load(undecided, context, 0)
    asm.copy(kind, undecided)
    asm.conjoin(kind, 0xFFFF)
    asm.shift_right(undecided, 16)
    asm.load(major, context, 4)
    asm.load(minor, context, 8)
    for number, (allow, key, bits) in enumerate(reversed(rows(rules))):  # the last row about a bit decides it
        after = f"after {number}"
        if key[0] != "a":
            asm.jump_unless_equal(kind, _TYPES[key[0]], after)
        for register, value in ((major, key[1]), (minor, key[2])):
            if value is not None:
                asm.jump_unless_equal(register, value, after)
        if allow:
            asm.conjoin(undecided, ~bits)
            asm.jump_unless_equal(undecided, 0, after)
            asm.exit(1)
        else:
            asm.jump_if_any(undecided, bits, f"deny {number}")
            asm.jump(after)
            asm.label(f"deny {number}")
            asm.exit(0)
        asm.label(after)
    asm.exit(0)
    return asm.program()


def attach(folder: str, rules: list[dict]) -> None:
    """v2: in the place of whatever the cgroup has; there is no moment without one. Raises ContainerError."""
    from hostel.base.linux import bpf

    code = program(rules)
    fds: list[int] = []
    try:
        cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fds.append(cgroup)
        new = bpf.load(bpf.CGROUP_DEVICE_PROGRAM, code, "hostel_devices")
        fds.append(new)
        old = bpf.attached(cgroup, bpf.CGROUP_DEVICE)
        fds += old
        if len(old) == 1:
            try:
                bpf.attach(cgroup, new, bpf.CGROUP_DEVICE, replace=old[0])
                return
            except OSError:  # before Linux 5.6, or attached by other flags
                pass
        bpf.attach(cgroup, new, bpf.CGROUP_DEVICE)
        for fd in old:
            bpf.detach(cgroup, fd, bpf.CGROUP_DEVICE)
    except OSError as error:
        raise ContainerError(f"can't limit devices by eBPF in {folder}: {error.strerror}") from error
    finally:
        for fd in fds:
            os.close(fd)
