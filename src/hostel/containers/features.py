"""What the runtime can (runtime-spec 1.2, features.md), for engines that ask."""

import os

from hostel._version import __version__
from hostel.containers import capabilities, mount_options, process, seccomp, spec


def features() -> dict:
    kinds = [kind for kind, (_, name) in spec.NAMESPACES.items() if os.path.exists(f"/proc/self/ns/{name}")]
    return {
        "ociVersionMin": "1.0.0", "ociVersionMax": spec.VERSION, "hooks": list(spec.HOOKS),
        "mountOptions": mount_options.names(),
        "linux": {
            "namespaces": kinds,
            "capabilities": list(capabilities.NAMES[: capabilities.last() + 1]),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True, "actions": list(seccomp.ACTIONS), "operators": list(seccomp.OPERATORS),
                "archs": [f"SCMP_ARCH_{name.upper()}" for name in seccomp.ARCHITECTURES],
                "knownFlags": list(seccomp.FLAGS), "supportedFlags": list(seccomp.FLAGS),
            },
            "apparmor": {"enabled": process.apparmor()}, "selinux": {"enabled": process.selinux()},
            "intelRdt": {"enabled": False}, "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"org.hostel.version": __version__},
        "potentiallyUnsafeConfigAnnotations": [],
    }  # fmt: skip
