"""``hostel-oci``: the runtime as a command, with runc's words, flags and exit statuses, so that podman, containerd and
buildah can be given it as their runtime.

Options are read by a table, since argparse's import takes as long as the start of a container. An error is one
line on the standard error, and one in ``--log``'s file; the status is 1, of ``exec`` 255; else the program's own.
"""

import gc
import os
import sys

from hostel.base.errors import HostelError, UsageError

# A command's options: long name, short name, whether it takes a value. Then its operands, for the usage line.
_CREATE = (
    ("bundle", "b", True), ("console-socket", "", True), ("pid-file", "", True), ("no-pivot", "", False),
    ("no-new-keyring", "", False), ("preserve-fds", "", True), ("pidfd-socket", "", True),
)  # fmt: skip
_UPDATE = {  # option: where it is in linux.resources, and its type
    "blkio-weight": ("blockIO", "weight", int),
    "cpu-period": ("cpu", "period", int), "cpu-quota": ("cpu", "quota", int), "cpu-burst": ("cpu", "burst", int),
    "cpu-share": ("cpu", "shares", int), "cpu-rt-period": ("cpu", "realtimePeriod", int),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", int), "cpuset-cpus": ("cpu", "cpus", str),
    "cpuset-mems": ("cpu", "mems", str), "cpu-idle": ("cpu", "idle", int), "memory": ("memory", "limit", bytes),
    "memory-reservation": ("memory", "reservation", bytes), "memory-swap": ("memory", "swap", bytes),
    "pids-limit": ("pids", "limit", int),
}  # fmt: skip
COMMANDS: "dict[str, tuple[tuple, str, str]]" = {
    "create": (_CREATE, "ID", "make a container, whose program waits for 'start'"),
    "start": ((), "ID", "have the program of a container that was made run"),
    "run": (_CREATE + (("detach", "d", False), ("keep", "", False), ("no-subreaper", "", False)), "ID",
            "make a container, start it, and remove it when it has ended"),
    "state": ((), "ID", "print a container's state"),
    "kill": ((("all", "a", False),), "ID [SIGNAL]", "send a signal to a container's first process (TERM)"),
    "delete": ((("force", "f", False),), "ID", "remove a container that has ended"),
    "exec": ((
        ("console-socket", "", True), ("cwd", "", True), ("env", "e", True), ("tty", "t", False), ("user", "u", True),
        ("additional-gids", "g", True), ("process", "p", True), ("detach", "d", False), ("pid-file", "", True),
        ("process-label", "", True), ("apparmor", "", True), ("no-new-privs", "", False), ("cap", "c", True),
        ("preserve-fds", "", True), ("cgroup", "", True), ("ignore-paused", "", False), ("pidfd-socket", "", True),
    ), "ID COMMAND [ARGUMENT...]", "run another process in a container"),
    "ps": ((("format", "f", True),), "ID [PS OPTION...]", "list a container's processes"),
    "pause": ((), "ID", "have all its processes stand still"),
    "resume": ((), "ID", "let them go on"),
    "update": ((("resources", "r", True), *((name, "", True) for name in _UPDATE)), "ID", "change its limits"),
    "events": ((("interval", "", True), ("stats", "", False)), "ID", "print what it uses, and when memory runs out"),
    "list": ((("format", "f", True), ("quiet", "q", False)), "", "list the containers"),
    "spec": ((("bundle", "b", True), ("rootless", "", False)), "", "write a config.json to begin with"),
    "helper": ((("socket", "", True),), "", "stay, and do launchers' commands without a start of Python"),
    "launcher": ((("socket", "", True),), "FILE", "write a program that has a helper do its commands, for --runtime"),
    "features": ((), "", "print what this runtime can, as JSON"),
}  # fmt: skip
_GLOBAL = (
    ("root", "", True), ("log", "", True), ("log-format", "", True), ("debug", "", False), ("rootless", "", True),
    ("systemd-cgroup", "", False), ("criu", "", True), ("version", "v", False), ("help", "h", False),
)  # fmt: skip
_OPTIONAL_VALUE = ("rootless",)  # of the global ones: only after '='
_REPEATED = ("env", "cap", "additional-gids")


def main(argv: "list[str] | None" = None) -> int:
    if argv is None:
        argv = sys.argv[1:]
        gc.disable()  # a command makes no cycles that matter, and looking for them takes a tenth of its time
    options: dict = {}
    try:
        rest = _options(argv, _GLOBAL, options)
        if options.get("version"):
            return _version()
        if not rest or options.get("help") or rest[0] == "help":
            return _help()
        name, *words = rest
        if name not in COMMANDS:
            raise UsageError(f"there is no command '{name}': see 'hostel-oci --help'")
        table, operands, about = COMMANDS[name]
        chosen: dict = {}
        words = _options(words, (*table, ("help", "h", False)), chosen)
        if chosen.get("help"):
            print(f"usage: hostel-oci {name} [OPTION...] {operands}\n\n{about}\n")
            for long, short, value in table:
                print(f"  {f'-{short}, ' if short else '    '}--{long}{' VALUE' if value else ''}")
            return 0
        least = len(operands.partition("[")[0].split())
        if name == "exec" and chosen.get("process"):
            least = 1
        if len(words) < least or (len(words) > least and "[" not in operands and name != "exec"):
            raise UsageError(f"usage: hostel-oci {name} [OPTION...] {operands}")
        command = globals()[f"_{name}"]
        return command(_runtime(options), chosen, words, options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except HostelError as error:
        return _report(str(error), options, 255 if argv and "exec" in argv[:8] and _is_exec(argv) else 1)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _report(text, options, 255 if _is_exec(argv) else 1)


def _is_exec(argv: "list[str]") -> bool:
    try:
        return _options(argv, _GLOBAL, {})[:1] == ["exec"]
    except UsageError:
        return False


def _options(argv: "list[str]", table: tuple, found: dict) -> "list[str]":
    """Reads the options that come first, as Go's flag packages do; the rest."""
    argv = list(argv)
    while argv and argv[0].startswith("-") and argv[0] != "-":
        word = argv.pop(0)
        if word == "--":
            break
        name, equals, value = word.lstrip("-").partition("=")
        row = next((row for row in table if name == row[0] or (row[1] and name == row[1])), None)
        if row is None:
            raise UsageError(f"there is no option {word}")
        long, _, takes = row
        if takes and not equals:
            if long in _OPTIONAL_VALUE and table is _GLOBAL and argv and argv[0] not in ("true", "false", "auto"):
                value = "true"
            elif not argv:
                raise UsageError(f"the option --{long} needs a value")
            else:
                value = argv.pop(0)
        if long in _REPEATED:
            found.setdefault(long, []).append(value)
        else:
            found[long] = value if takes else value.lower() != "false"
    return argv


def _report(text: str, options: dict, status: int) -> int:
    path = options.get("log")
    line = f"hostel-oci: {text}\n"
    if path:
        from hostel.containers import fastjson, state

        if options.get("log-format") == "json":
            entry = fastjson.dumps({"level": "error", "msg": text, "time": state.now()}) + "\n"
        else:
            entry = f'time="{state.now()}" level=error msg={fastjson.dumps(text)}\n'
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.write(fd, entry.encode())
            os.close(fd)
        except OSError as error:
            line += f"hostel-oci: {path}: {error.strerror}\n"
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:
        pass
    return status


def _runtime(options: dict):  # type: ignore[no-untyped-def]
    from hostel.containers.runtime import Runtime

    root = options.get("root")
    if not root:
        base = os.environ.get("XDG_RUNTIME_DIR")
        if os.geteuid() == 0 and not (base and os.environ.get("USER", "root") != "root"):
            root = "/run/hostel-oci"
        else:
            root = f"{base}/hostel-oci" if base else _own(f"/tmp/hostel-oci-{os.geteuid()}")
    return Runtime(os.path.abspath(root))


def _own(folder: str) -> str:
    """A folder where everybody can make some: ours alone, since states have hooks in them."""
    import stat

    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UsageError(f"{folder} isn't only ours: set XDG_RUNTIME_DIR, or give a --root")
    return folder


def _version() -> int:
    from hostel._version import __version__
    from hostel.containers.spec import VERSION

    print(f"hostel-oci version {__version__}\nspec: {VERSION}")
    return 0


def _help() -> int:
    print("usage: hostel-oci [OPTION...] COMMAND [ARGUMENT...]\n\nRuns containers as the OCI's runtime-spec has it.\n")
    for name, (_, operands, about) in COMMANDS.items():
        print(f"  {name:9} {operands:26} {about}")
    print("\noptions:")
    for long, short, value in _GLOBAL:
        print(f"  {f'-{short}, ' if short else '    '}--{long}{' VALUE' if value else ''}")
    return 0


def _number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{name}: {text} is no number") from None


def _creation(chosen: dict, options: dict) -> dict:
    if chosen.get("pidfd-socket"):
        raise UsageError("--pidfd-socket isn't supported")
    return {
        "console_socket": chosen.get("console-socket"), "pid_file": chosen.get("pid-file"),
        "preserve_fds": _number(chosen.get("preserve-fds", "0"), "preserve-fds"),
        "no_pivot": bool(chosen.get("no-pivot")), "no_new_keyring": bool(chosen.get("no-new-keyring")),
        "systemd_cgroup": bool(options.get("systemd-cgroup")),
    }  # fmt: skip


def _create(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    runtime.create(words[0], chosen.get("bundle", "."), **_creation(chosen, options))
    return 0


def _start(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    runtime.start(words[0])
    return 0


def _state(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    print(fastjson.dumps(runtime.state(words[0]), indent=True))
    return 0


def _kill(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    runtime.kill(words[0], signal_number(words[1] if len(words) > 1 else "TERM"), bool(chosen.get("all")))
    return 0


def signal_number(text: str) -> int:
    if text.isdigit():
        number = int(text)
    else:
        import _signal  # type: ignore[import-not-found]

        name = text.upper().removeprefix("SIG")
        number = getattr(_signal, f"SIG{name}", 0)
        for base, sign in (("RTMIN", 1), ("RTMAX", -1)):
            rest = name.removeprefix(base)
            if name.startswith(base) and rest[1:].isdigit():
                number = getattr(_signal, f"SIG{base}") + sign * int(rest[1:])
    if not isinstance(number, int) or not 0 < number <= 64:
        raise UsageError(f"there is no signal {text}")
    return number


def _delete(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    runtime.delete(words[0], bool(chosen.get("force")))
    return 0


def _run(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    id, bundle, detached = words[0], chosen.get("bundle", "."), bool(chosen.get("detach"))
    more = _creation(chosen, options)
    connection = None
    if not more["console_socket"] and not detached:
        try:
            with open(os.path.join(bundle, "config.json"), "rb") as file:
                wanted = (fastjson.loads(file.read(), "config.json").get("process") or {}).get("terminal")
        except OSError:
            wanted = False  # 'create' says what is wrong
        if wanted:
            connection, more["console_socket"] = _pair()
    state = runtime.create(id, bundle, **more)
    try:
        if detached:
            runtime.start(id)
            return 0
        return _attend(state.pid, connection, lambda: runtime.start(id))
    finally:
        if not detached and not chosen.get("keep"):
            runtime.delete(id, force=True)


def _pair() -> "tuple[int, int]":
    from _socket import socketpair  # type: ignore[import-not-found]

    ours, theirs = socketpair()
    return ours.detach(), theirs.detach()


def _attend(pid: int, connection: "int | None", begin) -> int:  # type: ignore[no-untyped-def]
    """Start a child by ``begin``, hand on our signals, and wait; its status. Its terminal comes by ``connection``."""
    import signal

    from hostel.containers.runtime import wait

    def forward(number: int, _: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    for number in set(signal.valid_signals()) - {
        signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGTSTP,
        signal.SIGTTIN, signal.SIGTTOU, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
    }:  # fmt: skip
        signal.signal(number, forward)
    if connection is None:
        begin()
        return wait(pid)
    from hostel.containers import console

    with console.relayed(console.receive(connection)):
        begin()
        return wait(pid)


def _exec(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    if chosen.get("pidfd-socket"):
        raise UsageError("--pidfd-socket isn't supported")
    if chosen.get("cgroup"):
        raise UsageError("--cgroup isn't supported: a process is in its container's cgroup")
    state = runtime.load(words[0])
    if chosen.get("process"):
        with open(chosen["process"], "rb") as file:
            config = fastjson.loads(file.read(), chosen["process"])
    else:
        config = _changed(dict(state.config["process"]), chosen)
        config["args"] = words[1:]
    config.pop("consoleSize", None) if not config.get("terminal") else None
    detached = bool(chosen.get("detach"))
    connection, console = None, chosen.get("console-socket")
    if config.get("terminal") and not console:
        if detached:
            raise UsageError("a terminal needs --console-socket with --detach")
        connection, console = _pair()
    pid = runtime.exec(
        words[0], config, console_socket=console, pid_file=chosen.get("pid-file"),
        preserve_fds=_number(chosen.get("preserve-fds", "0"), "preserve-fds"),
        ignore_paused=bool(chosen.get("ignore-paused")),
    )  # fmt: skip
    return 0 if detached else _attend(pid, connection, lambda: None)


def _changed(process: dict, chosen: dict) -> dict:
    """The container's own process, as exec's options have it."""
    process["terminal"] = bool(chosen.get("tty"))
    if chosen.get("cwd"):
        process["cwd"] = chosen["cwd"]
    process["env"] = [*(process.get("env") or []), *chosen.get("env", [])]
    user = dict(process.get("user") or {})
    if chosen.get("user"):
        uid, colon, gid = chosen["user"].partition(":")
        user["uid"] = _number(uid, "user")
        if colon:
            user["gid"] = _number(gid, "user")
    if chosen.get("additional-gids"):
        groups = [_number(group, "additional-gids") for text in chosen["additional-gids"] for group in text.split(",")]
        user["additionalGids"] = [*(user.get("additionalGids") or []), *groups]
    process["user"] = user
    if chosen.get("cap"):
        held = dict(process.get("capabilities") or {})
        for which in ("bounding", "effective", "permitted"):
            held[which] = [*(held.get(which) or []), *chosen["cap"]]
        process["capabilities"] = held
    if chosen.get("no-new-privs"):
        process["noNewPrivileges"] = True
    for option, name in (("process-label", "selinuxLabel"), ("apparmor", "apparmorProfile")):
        if chosen.get(option):
            process[name] = chosen[option]
    return process


def _ps(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    pids = runtime.ps(words[0])
    form = chosen.get("format", "table")
    if form == "json":
        print(fastjson.dumps(pids))
        return 0
    if form != "table":
        raise UsageError(f"--format: {form} is neither table nor json")
    import subprocess

    try:
        answer = subprocess.run(["ps", *(words[1:] or ["-ef"])], capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("ps isn't there: use --format json") from None
    if answer.returncode:
        raise UsageError(f"ps: {answer.stderr.strip().partition(chr(10))[0]}")
    lines = answer.stdout.splitlines()
    if "PID" not in lines[0].split():
        raise UsageError("ps's output has no column PID: give it other options")
    column = lines[0].split().index("PID")
    print(lines[0])
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            print(line)
    return 0


def _pause(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    runtime.pause(words[0])
    return 0


def _resume(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    runtime.resume(words[0])
    return 0


def _update(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    resources: dict = {}
    path = chosen.pop("resources", None)
    if path:
        if path == "-":
            raw = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                raw = file.read()
        resources = fastjson.loads(raw, path)
    for option, text in chosen.items():
        group, name, kind = _UPDATE[option]
        resources.setdefault(group, {})[name] = (
            text if kind is str else _bytes(text, option) if kind is bytes else _number(text, option)
        )
    if not resources:
        raise UsageError("nothing to change: give --resources or a limit's option")
    runtime.update(words[0], resources)
    return 0


def _bytes(text: str, name: str) -> int:
    units = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    plain = text.lower().removesuffix("ib") if text.lower().endswith("ib") else text.lower()
    if plain[-1:] in units and plain[:-1].isdigit():
        return int(plain[:-1]) * units[plain[-1]]
    return _number(text, name)


def _events(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    id = words[0]

    def show(kind: str, data: object) -> None:
        print(fastjson.dumps({"type": kind, "id": id, **({"data": data} if data is not None else {})}), flush=True)

    if chosen.get("stats"):
        show("stats", runtime.stats(id))
        return 0
    import select
    import time

    seconds = _seconds(chosen.get("interval", "5s"))
    cgroup = runtime.cgroup(id)
    state = runtime.load(id)
    poll, ended, oom = select.poll(), state.pidfd(), cgroup.oom_fd()
    poll.register(ended, select.POLLIN)
    if oom is not None:
        poll.register(oom, select.POLLIN | select.POLLPRI)
    kills = cgroup.oom_kills()
    due = time.monotonic() + seconds
    while True:
        ready = dict(poll.poll(max(0, due - time.monotonic()) * 1000))
        if oom in ready:
            os.read(oom, 4096)
        if oom in ready or ended in ready:
            if cgroup.oom_kills() > kills:
                kills = cgroup.oom_kills()
                show("oom", None)
        if ended in ready:
            return 0
        if time.monotonic() >= due:
            show("stats", cgroup.stats())
            due += seconds


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit, factor in units.items():
        if text.endswith(unit):
            try:
                value = float(text.removesuffix(unit)) * factor
            except ValueError:
                continue
            if value > 0:
                return value
    raise UsageError(f"--interval: {text} is no duration such as 5s")


def _list(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson

    found = runtime.list()
    if chosen.get("quiet"):
        for one in found:
            print(one["id"])
        return 0
    form = chosen.get("format", "table")
    if form == "json":
        print(fastjson.dumps(found))
        return 0
    if form != "table":
        raise UsageError(f"--format: {form} is neither table nor json")
    rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    for one in found:
        rows.append((one["id"], str(one["pid"]), one["status"], one["bundle"], one["created"], one["owner"] or "root"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _spec(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    import json

    from hostel.containers import spec

    path = os.path.join(chosen.get("bundle", "."), "config.json")
    if os.path.exists(path):
        raise UsageError(f"{path} is there already: remove it first")
    with open(path, "x") as file:
        file.write(json.dumps(spec.default(bool(chosen.get("rootless"))), indent="\t") + "\n")
    return 0


def _features(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import fastjson, features

    print(fastjson.dumps(features.features(), indent=True))
    return 0


def _helper(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import helper

    helper.serve(chosen.get("socket") or helper.place())
    return 0


def _launcher(runtime, chosen, words, options):  # type: ignore[no-untyped-def]
    from hostel.containers import helper

    helper.write_launcher(words[0], os.path.abspath(chosen.get("socket") or helper.place()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
