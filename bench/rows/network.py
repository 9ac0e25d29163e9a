"""A guest's network by user-mode means: hostel's router beside QEMU's slirp, and beside passt, which is QEMU's second
card. One stream each way (programs/net.c), and short requests to the guest's own server."""

import dataclasses
import http.client
import time
from collections.abc import Sequence

from bench import programs
from bench.errors import Wrong
from bench.guest import Guest
from bench.network import GATEWAYS, server
from bench.peer import Peer
from bench.row import Context, Goal, Group, Measurement, Row, Sample, Values, must_agree

MEGABYTES = 400
REQUESTS = 1000
PAGE = "x" * 100


def guest() -> Guest:
    plain = programs.guest()
    return dataclasses.replace(plain, network=True, memory_mib=512, cmdline=f"{plain.cmdline} hostel.dhcp=no")


def stream(direction: str, card: int) -> Measurement:
    """A stream "out" of the guest or "in", by QEMU's card 0 (slirp) or 1 (passt)."""

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        sums: dict[str, str] = {}
        for peer in peers:
            if not peer.is_machine or (card and peer.name == "qemu" and not peer.has_second_card):
                continue
            gateway = GATEWAYS[card if peer.name == "qemu" else 0]
            with server() as port:
                used = peer.cpu_seconds()
                done = peer.work(f"$PROGRAMS/net {context.scaled(100)} {direction} {gateway} {port} {MEGABYTES}")
                values[peer.name] = Sample(done.seconds, peer.cpu_seconds() - used)
            sums[peer.title] = done.checksum
        must_agree(sums)
        return values

    return measure


def requests(peers: Sequence[Peer], context: Context) -> Values:
    """One connection after the other to busybox's httpd in the guest, by a forwarded port."""
    values: Values = {}
    for peer in peers:
        if not peer.is_machine:
            continue
        peer.run(f"mkdir -p /tmp/www && echo -n {PAGE} > /tmp/www/page && {{ $BUSYBOX httpd -f -p 80 -h /tmp/www & }}")
        _get(peer, 30.0)
        used, begun = peer.cpu_seconds(), time.monotonic()
        for _ in range(context.scaled(REQUESTS)):
            _get(peer)
        values[peer.name] = Sample(time.monotonic() - begun, peer.cpu_seconds() - used)
        peer.run("kill $!")
    return values


def _get(peer: Peer, patience: float = 0.0) -> None:
    deadline = time.monotonic() + patience
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", peer.forwarded, timeout=30)
        try:
            connection.request("GET", "/page")
            answer = connection.getresponse()
            if answer.status != 200 or answer.read() != PAGE.encode():
                raise Wrong(f"{peer.title}: a request's answer is wrong: {answer.status}")
            return
        except (OSError, http.client.HTTPException) as e:
            if time.monotonic() > deadline:
                raise Wrong(f"{peer.title}: a request failed: {e}") from e
            time.sleep(0.1)
        finally:
            connection.close()


SLIRP, PASST, SHORT = Goal(speed=2), Goal(speed=1), Goal(speed=1)
NETWORK = Group((
    Row("tcp-out", f"TCP guest to host, {MEGABYTES} MB, against slirp", "s", stream("out", 0), SLIRP),
    Row("tcp-in", f"TCP host to guest, {MEGABYTES} MB, against slirp", "s", stream("in", 0), SLIRP),
    Row("tcp-out-passt", f"TCP guest to host, {MEGABYTES} MB, against passt", "s", stream("out", 1), PASST),
    Row("tcp-in-passt", f"TCP host to guest, {MEGABYTES} MB, against passt", "s", stream("in", 1), PASST),
    Row("http", f"{REQUESTS:,} short HTTP requests over a forwarded port", "s", requests, SHORT),
), guest)
