"""The network cards of a VM or container, from what a person asked for."""

from collections.abc import Sequence

from hostel.base.errors import UsageError
from hostel.spec import net as spec_net


def make_nics(
    networks: Sequence[str] | None,
    ports: Sequence[str],
    mac: str | None,
    net_rate: str | None,
    allow_host_loopback: bool,
) -> list[spec_net.NicSpec]:
    """The checked cards, each with its MAC."""
    nics = [spec_net.parse_nic(text) for text in (["nat"] if networks is None else networks)]
    if any(nic.network == "none" for nic in nics):
        if len(nics) > 1:
            raise UsageError("--network none stands alone: it is no network")
        nics = []
    if len(nics) > spec_net.MAX_NICS:
        raise UsageError(f"a VM has up to {spec_net.MAX_NICS} network cards, not {len(nics)}")
    for nic in nics:
        if net_rate and not nic.rate:
            nic.rate, nic.burst = spec_net.parse_rate(net_rate)
    if mac is not None:
        if not nics:
            raise UsageError("--mac needs a network card")
        nics[0].mac = spec_net.check_mac(mac)
    ways = [nic for nic in nics if ":" not in nic.network]
    if ports:
        if not ways:
            raise UsageError("-p needs a card on nat or a named network")
        ways[0].ports = [str(forward) for text in ports for forward in spec_net.parse_forwards(text)]
    if allow_host_loopback:
        if not any(nic.network == "nat" for nic in nics):
            raise UsageError("--allow-host-loopback needs a card on nat")
        for nic in nics:
            nic.host_loopback = nic.network == "nat"
    for nic in nics:
        nic.mac = nic.mac or spec_net.make_mac()
    macs = [nic.mac for nic in nics]
    if len(set(macs)) != len(macs):
        raise UsageError("two cards of one VM can't have the same MAC address")
    return nics
