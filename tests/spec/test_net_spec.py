"""What people may write about networks, and what they are told where it makes no sense."""

import pytest

from hostel.base.errors import UsageError
from hostel.spec import net


@pytest.mark.parametrize(
    "text, forward",
    [
        ("8080:80", net.Forward("tcp", "127.0.0.1", 8080, 80)),
        ("0.0.0.0:53:5353/udp", net.Forward("udp", "0.0.0.0", 53, 5353)),
        ("[::1]:1:65535/tcp", net.Forward("tcp", "::1", 1, 65535)),
    ],
)
def test_forwards(text, forward):
    assert net.parse_forward(text) == forward
    assert net.parse_forward(str(forward)) == forward


def test_ranges_of_forwards():
    assert net.parse_forwards("80:8080") == [net.parse_forward("80:8080")]
    assert net.parse_forwards("[::1]:8000-8002:9000-9002/udp") == [
        net.Forward("udp", "::1", 8000 + i, 9000 + i) for i in range(3)
    ]
    wrongs = ("1-2:1-3", "2-1:2-1", "1-2000:1-2000", "65535-65536:1-2", "1-2:80", "0-1:1-2", "1-2:1-2/x", "x:1-2:1-2")
    for wrong in wrongs:
        with pytest.raises(UsageError):
            net.parse_forwards(wrong)


@pytest.mark.parametrize(
    "text", ["80", "a:b", "0:80", "80:0", "65536:1", "1:2:3", "::1:80:80", "1.2.3.4.5:1:2", "80:80/", "80:80/icmp", ""]
)
def test_what_is_no_forward(text):
    with pytest.raises(UsageError):
        net.parse_forward(text)


def test_cards():
    assert net.parse_nic("nat") == net.NicSpec()
    assert net.parse_nic("none").network == "none"
    card = net.parse_nic("lab,mac=02-00-5E-10-00-01,mtu=9000,queues=4,rate=10M:1M,spoof=on")
    assert card == net.NicSpec(
        network="lab", mac="02:00:5e:10:00:01", mtu=9000, queues=4, rate=10 << 20, burst=1 << 20, spoof=True
    )
    assert net.parse_nic("tap:tap0").network == "tap:tap0"
    assert net.parse_nic("bridge:br0").network == "bridge:br0"


@pytest.mark.parametrize(
    "text",
    [
        "", "Lab", "1st", "a/b", "tap:", "tap:a/b", "tap:" + "x" * 16, "bond:x", "nat,mac=0",
        "nat,mac=ff:ff:ff:ff:ff:ff",
        "nat,mtu=67", "nat,mtu=65522", "nat,queues=0", "nat,queues=17", "nat,rate=1", "nat,rate=0:5", "nat,x=1", "nat,",
    ],
)  # fmt: skip
def test_what_is_no_card(text):
    with pytest.raises(UsageError):
        net.parse_nic(text)


def test_macs_are_local_and_differ():
    macs = {net.make_mac() for _ in range(50)}
    assert len(macs) == 50
    assert all(net.check_mac(mac) == mac and int(mac[:2], 16) & 3 == 2 for mac in macs)


def test_networks():
    spec = net.check_network_spec(net.NetworkSpec(name="lab", subnet="10.1.2.0/24", subnet6="fd00:1::/64"))
    assert spec.subnet == "10.1.2.0/24"
    for wrong in (
        {"name": "nat"}, {"name": "A"}, {"driver": "macvlan"}, {"subnet": "10.1.2.3/24"}, {"subnet": "10.0.0.0/30"},
        {"subnet": "fd00::/64"}, {"subnet6": "fd00::/65"}, {"subnet": "127.0.0.0/24"}, {"subnet6": "fe80::/64"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            net.check_network_spec(net.NetworkSpec(**{"name": "lab", **wrong}))
