"""A ``#cloud-config`` as two shell scripts, for images without cloud-init: the parts of it that people use.

The host reads the YAML, and the guest needs nothing but a shell: ``early`` runs before anything listens, ``late`` once
the network is up, both once. What is honoured is HANDLED; other keys are named to the person who gave them, as an image
with cloud-init itself (``hostel image build debian --include cloud-init``) honours them all.

cloud-init's own documentation is the specification (Module reference, "Cloud config examples").
"""

import base64
import binascii
import gzip
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hostel.base.errors import UsageError

LONGEST = 1 << 20
DEFAULT_USER = {"name": "debian", "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": True}
# True for an image of ours whatever they say
ALREADY = {"growpart", "resize_rootfs", "preserve_hostname", "ssh_deletekeys", "disable_root", "final_message"}
HANDLED = {
    "hostname", "fqdn", "timezone", "locale", "bootcmd", "groups", "users", "user", "ssh_authorized_keys", "ssh_pwauth",
    "password", "chpasswd", "write_files", "package_update", "package_upgrade", "packages", "runcmd", "power_state",
    "manage_etc_hosts", "apt_update", "apt_upgrade",
}  # fmt: skip
OFF = {"poweroff": "poweroff", "reboot": "reboot", "halt": "halt"}


@dataclass
class Scripts:
    """What the guest is to run, and the names of what isn't honoured."""

    early: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def scripts(user_data: bytes, keys: Iterable[str] = ()) -> Scripts:
    """What ``user_data`` wants. ``keys`` are for root besides. Raises UsageError."""
    made = Scripts()
    config: dict[str, Any] = {}
    if len(user_data) > LONGEST:
        raise UsageError(f"cloud-init: user data has {len(user_data)} bytes; at most {LONGEST} are taken")
    head = user_data.lstrip()
    if head.startswith(b"#!"):
        made.late += _file("/var/lib/hostel/user-script", head, "0700", "root:root") + ["/var/lib/hostel/user-script"]
    elif head.split(b"\n", 1)[0].strip() == b"#cloud-config":
        config = _yaml(user_data)
    elif head:
        kind = head.split(b"\n", 1)[0][:40].decode(errors="replace")
        raise UsageError(f"cloud-init: user data begins with '#cloud-config' or '#!', not '{kind}'")
    made.ignored = sorted(str(key) for key in config if key not in HANDLED | ALREADY)
    try:
        _early(config, list(keys), made)
        _late(config, made)
    except (TypeError, ValueError, AttributeError, KeyError, binascii.Error, OSError) as error:
        raise UsageError(f"cloud-init: the user data makes no sense: {error}") from error
    return made


def _yaml(data: bytes) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise UsageError(f"cloud-init: the user data is no YAML: {' '.join(str(error).split())}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UsageError("cloud-init: the user data is no mapping of keys")
    return config


def _early(config: dict[str, Any], keys: list[str], made: Scripts) -> None:
    out = made.early
    name = _text(config.get("fqdn") or config.get("hostname") or "", "hostname")
    if name:
        short = shlex.quote((_text(config.get("hostname") or name, "hostname")).partition(".")[0])
        both = shlex.quote(name) + (f" {short}" if "." in name else "")
        out += [f"echo {short} > /etc/hostname", f"echo {short} > /proc/sys/kernel/hostname",
                "sed -i '/^127\\.0\\.1\\.1/d' /etc/hosts", f"echo 127.0.1.1 {both} >> /etc/hosts"]  # fmt: skip
    for command in _list(config.get("bootcmd"), "bootcmd"):
        out.append(_command(command))
    if zone := config.get("timezone"):
        quoted = shlex.quote(f"/usr/share/zoneinfo/{_text(zone, 'timezone')}")
        out.append(f"[ -e {quoted} ] && ln -sf {quoted} /etc/localtime && echo {shlex.quote(zone)} > /etc/timezone")
    if locale := config.get("locale"):
        out.append(f"echo LANG={shlex.quote(_text(locale, 'locale'))} > /etc/default/locale")
    for entry in _list(config.get("write_files"), "write_files"):
        (made.late if entry.get("defer") else out).extend(_write_file(entry))
    groups = config.get("groups") or []
    for group in groups.split(",") if isinstance(groups, str) else groups:
        members = list(group.items()) if isinstance(group, dict) else [(group, [])]
        for name, users in members:
            out.append(f"getent group {_q(name)} >/dev/null || groupadd {_q(name)}")
            out += [f"gpasswd -a {_q(user)} {_q(name)} >/dev/null" for user in _list(users, "groups")]
    everyone = config.get("users", [])
    everyone = everyone.split(",") if isinstance(everyone, str) else list(everyone or [])
    own = [_text(key, "ssh_authorized_keys") for key in _list(config.get("ssh_authorized_keys"), "ssh_authorized_keys")]
    default = None
    for user in everyone:
        if user == "default" or (isinstance(user, dict) and user.get("name") == DEFAULT_USER["name"]):
            user = {**DEFAULT_USER, **(user if isinstance(user, dict) else {}), **_mapping(config.get("user"))}
            default = user
        user = {"name": user} if isinstance(user, str) else dict(user)
        if user.get("name") == "root":
            out += _keys("root", _list(user.get("ssh_authorized_keys"), "ssh_authorized_keys"))
            continue
        out += _user(user, own if user is default or (default or {}).get("name") == user.get("name") else [])
    # Without a default user the keys are root's, as they say nobody else
    out += _keys("root", [*keys, *([] if default else own)])
    out += _passwords(config, (default or {}).get("name", "root"))
    if "ssh_pwauth" in config:
        word = "yes" if config["ssh_pwauth"] in (True, "yes", "true", "True") else "no"
        setting = f"PasswordAuthentication {word}\n".encode()
        out += _file("/etc/ssh/sshd_config.d/50-cloud-init.conf", setting, "0600", "root:root")


def _late(config: dict[str, Any], made: Scripts) -> None:
    out = made.late
    packages = _list(config.get("packages"), "packages")
    upgrade = config.get("package_upgrade", config.get("apt_upgrade"))
    if packages or upgrade or config.get("package_update", config.get("apt_update")):
        out += ["export DEBIAN_FRONTEND=noninteractive", "apt-get -q update || bad=1"]
    if upgrade:
        out.append("apt-get -q -y -o Dpkg::Options::=--force-confold dist-upgrade || bad=1")
    names = ["=".join(map(str, p)) if isinstance(p, list) else _text(p, "packages") for p in packages]
    if names:
        install = "apt-get -q -y -o Dpkg::Options::=--force-confold install"
        out.append(f"{install} {' '.join(map(shlex.quote, names))} || bad=1")
    for command in _list(config.get("runcmd"), "runcmd"):  # one that fails doesn't keep the others from their turn
        out.append(f"{_command(command)} || bad=1")
    state = _mapping(config.get("power_state"))
    if state:
        mode = OFF.get(str(state.get("mode")))
        if not mode:
            raise ValueError("power_state's mode is poweroff, reboot or halt")
        out.append(f"systemctl --no-block {mode}")
    if any("bad=1" in line for line in out):
        out.append("exit ${bad:-0}")


def _user(user: dict[str, Any], more_keys: list[str]) -> list[str]:
    name = _text(user["name"], "a user's name")
    options = []
    for key, option in (("gecos", "-c"), ("homedir", "-d"), ("uid", "-u"), ("primary_group", "-g"), ("shell", "-s"),
                        ("expiredate", "-e"), ("inactive", "-f")):  # fmt: skip
        if user.get(key) is not None:
            options += [option, _q(user[key])]
    if "shell" not in user:
        options += ["-s", "/bin/bash"]
    options.append("-r" if user.get("system") else "")
    options.append("-M" if user.get("no_create_home") or user.get("system") else "-m")
    out = []
    groups = user.get("groups") or []
    groups = [g.strip() for g in groups.split(",")] if isinstance(groups, str) else list(groups)
    if user.get("primary_group"):
        groups.insert(0, user["primary_group"])
    out += [f"getent group {_q(group)} >/dev/null || groupadd {_q(group)}" for group in groups]
    out.append(f"id {_q(name)} >/dev/null 2>&1 || useradd {' '.join(filter(None, options))} {_q(name)}")
    out += [f"usermod -aG {_q(group)} {_q(name)}" for group in groups]
    if user.get("passwd") or user.get("hashed_passwd"):
        out.append(f"usermod -p {_q(user.get('passwd') or user['hashed_passwd'])} {_q(name)}")
    if user.get("plain_text_passwd"):
        out.append(f"printf '%s\\n' {_q(name + ':' + str(user['plain_text_passwd']))} | chpasswd")
    if user.get("lock_passwd", True):
        out.append(f"passwd -q -l {_q(name)}")
    sudo = user.get("sudo")
    rules = [sudo] if isinstance(sudo, str) else list(sudo or [])
    if rules:
        text = "".join(f"{name} {rule}\n" for rule in rules)
        out += _file(f"/etc/sudoers.d/90-{name}", text.encode(), "0440", "root:root")
    keys = [_text(key, "ssh_authorized_keys") for key in _list(user.get("ssh_authorized_keys"), "ssh_authorized_keys")]
    return out + _keys(name, [*keys, *more_keys])


def _keys(name: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    text = shlex.quote("\n".join(keys))
    home = f"home=$(getent passwd {_q(name)} | cut -d: -f6)"
    return [
        f"{home}; umask 077; mkdir -p \"$home/.ssh\"; printf '%s\\n' {text} >> \"$home/.ssh/authorized_keys\"; "
        f'chown -R "$(id -u {_q(name)}):$(id -g {_q(name)})" "$home/.ssh"; umask 022'
    ]


def _passwords(config: dict[str, Any], default: str) -> list[str]:
    pairs: list[tuple[str, str, bool]] = []  # user, password, hashed
    if config.get("password"):
        pairs.append((default, str(config["password"]), False))
    chpasswd = _mapping(config.get("chpasswd"))
    listed = chpasswd.get("list") or []
    for line in listed.splitlines() if isinstance(listed, str) else listed:
        name, _, password = str(line).partition(":")
        pairs.append((name, password, password.startswith("$")))
    for user in _list(chpasswd.get("users"), "chpasswd"):
        pairs.append((user["name"], str(user["password"]), user.get("type", "hash") == "hash"))
    out = []
    for name, password, hashed in pairs:
        line = shlex.quote(f"{name}:{password}")
        out.append(f"printf '%s\\n' {line} | chpasswd {'-e' if hashed else ''}".rstrip())
        if chpasswd.get("expire", True):
            out.append(f"passwd -q -e {_q(name)}")
    return out


def _write_file(entry: dict[str, Any]) -> list[str]:
    content = entry.get("content", "")
    data = content if isinstance(content, bytes) else str(content).encode()
    encoding = str(entry.get("encoding", "")).lower()
    if encoding in ("b64", "base64", "gz+b64", "gzip+b64", "gz+base64", "gzip+base64"):
        data = base64.b64decode(b"".join(data.split()), validate=True)
    elif encoding not in ("", "text/plain", "gz", "gzip"):
        raise ValueError(f"write_files: there is no encoding '{encoding}'")
    if encoding.startswith("gz"):
        data = gzip.decompress(data)
    mode = entry.get("permissions", "0644")
    mode = f"{mode:o}" if isinstance(mode, int) else str(mode)
    return _file(
        _text(entry["path"], "path"), data, mode, str(entry.get("owner", "root:root")), bool(entry.get("append"))
    )


def _file(path: str, data: bytes, mode: str, owner: str, append: bool = False) -> list[str]:
    """Commands that write a file, of any bytes."""
    folder = path.rpartition("/")[0]
    int(mode, 8)  # ValueError
    return [
        f"mkdir -p {_q(folder or '/')}",
        f"base64 -d >{'>' if append else ''} {_q(path)} <<'HOSTEL'\n{base64.encodebytes(data).decode()}HOSTEL",
        f"chmod {mode} {_q(path)}",
        f"chown {_q(owner)} {_q(path)}",
    ]


def _command(command: Any) -> str:
    """A list is a program with its arguments, a string a line for the shell; in a shell of its own, so that neither an
    ``exit`` nor a broken quote of one ends the others."""
    if isinstance(command, list):
        return " ".join(shlex.quote(str(word)) for word in command)
    return f"sh -c {shlex.quote(str(command))}"


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str) and what in ("ssh_authorized_keys", "groups"):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"{what} is a list")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"'{value}' is no mapping")
    return value or {}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or "\0" in value or (what != "content" and "\n" in value.strip()):
        raise ValueError(f"{what}: {value!r} is no text")
    return value.strip()


def _q(value: Any) -> str:
    return shlex.quote(str(value))
