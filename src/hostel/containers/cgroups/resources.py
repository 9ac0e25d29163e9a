"""What a container may use: ``linux.resources`` of a config.json (runtime-spec 1.2, config-linux.md, "Control groups").

Names are the specification's, in snake case; what is ``None`` wasn't asked for. Numbers keep the specification's
units: bytes, microseconds for CPU periods, and cgroup v1's scales for shares (2 to 262144) and weights (10 to 1000).
Whether the host can do what is asked is ``Cgroup.check``'s to say.
"""

import msgspec


class DeviceRule(msgspec.Struct, rename="camel", omit_defaults=True):
    """One row of the device list; a later row wins over an earlier one."""

    allow: bool
    type: str | None = None        # a: all, c: character, b: block
    major: int | None = None       # None: all
    minor: int | None = None
    access: str | None = None      # some of r, w, m (mknod); None: all


class Memory(msgspec.Struct, rename="camel", omit_defaults=True):
    """-1 is 'no limit'."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None                 # memory and swap together
    kernel: int | None = None               # deprecated by the specification, gone from the kernel
    kernel_tcp: int | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: int | None = None
    disable_oom_killer: bool | None = msgspec.field(default=None, name="disableOOMKiller")
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(msgspec.Struct, rename="camel", omit_defaults=True):
    shares: int | None = None
    quota: int | None = None                # µs of CPU time in a period; -1: no limit
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


class Pids(msgspec.Struct, rename="camel"):
    limit: int | None = None                # 0 and less: no limit


class WeightDevice(msgspec.Struct, rename="camel", omit_defaults=True):
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


class ThrottleDevice(msgspec.Struct, rename="camel"):
    major: int
    minor: int
    rate: int                               # bytes or requests a second; 0: no limit


class BlockIO(msgspec.Struct, rename="camel", omit_defaults=True):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: list[WeightDevice] | None = None
    throttle_read_bps_device: list[ThrottleDevice] | None = None
    throttle_write_bps_device: list[ThrottleDevice] | None = None
    throttle_read_iops_device: list[ThrottleDevice] | None = msgspec.field(default=None, name="throttleReadIOPSDevice")
    throttle_write_iops_device: list[ThrottleDevice] | None = msgspec.field(
        default=None, name="throttleWriteIOPSDevice"
    )


class HugepageLimit(msgspec.Struct, rename="camel"):
    page_size: str                          # as the kernel's files have it: 2MB, 1GB
    limit: int


class InterfacePriority(msgspec.Struct, rename="camel"):
    name: str
    priority: int


class Network(msgspec.Struct, rename="camel", omit_defaults=True):
    class_id: int | None = msgspec.field(default=None, name="classID")
    priorities: list[InterfacePriority] | None = None


class Rdma(msgspec.Struct, rename="camel", omit_defaults=True):
    hca_handles: int | None = None
    hca_objects: int | None = None


class Resources(msgspec.Struct, rename="camel", omit_defaults=True):
    devices: list[DeviceRule] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = msgspec.field(default=None, name="blockIO")
    hugepage_limits: list[HugepageLimit] | None = None
    network: Network | None = None
    rdma: dict[str, Rdma] | None = None
    unified: dict[str, str] | None = None   # cgroup v2's files by name
