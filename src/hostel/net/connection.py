"""One TCP connection with a guest (RFC 9293); what it is part of is net/tcp."""

import socket
import struct
import time
from collections import deque

from hostel.base.loop import READ, WRITE
from hostel.base.typed import TYPE_CHECKING, Any
from hostel.net import ethernet, ipv4
from hostel.net.checksum import total
from hostel.net.port import Port

if TYPE_CHECKING:
    from hostel.net.tcp import Tcp

MAX_HELD = 64 << 20           # bytes, of all connections: not acknowledged, or not taken by their sockets
MAX_FLIGHT = 1 << 20          # bytes on the way to a guest, of one connection
WINDOW = 1 << 20              # bytes that a guest may send ahead of the socket; a 16th of it when memory is short
SCALE = 7                     # of our windows (RFC 7323, 2.2)
BUFFER = 1 << 16              # that sockets are read to
KEEP = 8192                   # payload of this size and more stays in the buffer that it was read to
OVERHEAD = 256                # bytes that keeping a segment takes beside its payload
MAX_SEGMENT = 65535 - 40 - 80  # payload of one frame: IP's length has 16 bits
TURN = 8                      # segments of one connection before it is another's turn
RTO, MAX_RTO = 0.5, 60.0      # seconds; a guest's processor may be busy elsewhere for long
RETRIES = 15                  # as Linux's tcp_retries2: a quarter of an hour
CONNECT_TIME = 75.0           # seconds for a guest to answer
CHALLENGES = 10               # a second and connection

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
M = 0xFFFFFFFF
_END, _NOP, _MSS, _SCALE_OPTION = 0, 1, 2, 3

# States. CONNECTING: the outside is asked, the guest has heard nothing. What was sent and received of FINs is in flags.
CONNECTING, SYN_SENT, SYN_RECEIVED, ESTABLISHED, TIME_WAITING, CLOSED = range(6)


def options(data: bytes | memoryview) -> tuple[int, int]:
    """(MSS, window scale) of a SYN's options; -1 where one isn't there."""
    mss, scale, at = -1, -1, 0
    while at < len(data):
        kind = data[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > len(data) or data[at + 1] < 2 or at + data[at + 1] > len(data):
            break
        length = data[at + 1]
        if kind == _MSS and length == 4:
            mss = data[at + 2] << 8 | data[at + 3]
        elif kind == _SCALE_OPTION and length == 3:
            scale = min(data[at + 2], 14)  # RFC 7323, 2.3
        at += length
    return mss, scale


class Connection:
    """One connection of a guest's. ``key``: the guest's address, the other's, the guest's port, the other's."""

    def __init__(self, tcp: "Tcp", port: Port, key: bytes, mac: bytes, v6: bool, sock: socket.socket):
        self.tcp = tcp
        self.port = port
        self.key = key
        self.v6 = v6
        self.socket = sock
        self.fileno = sock.fileno()
        self.state = CONNECTING
        self.snd_una = self.snd_nxt = self.iss = tcp.initial_number(key)
        self.snd_wnd = self.snd_wl1 = self.snd_wl2 = 0
        self.max_wnd = 1
        self.snd_scale = -1            # -1: no window scaling, either way
        self.mss = -1
        self.rcv_nxt = self.rcv_adv = 0
        self.fin_received = False      # the guest's, in order
        self.fin_sent = False
        self.fin_first = False         # ours went before we had the guest's: TIME_WAIT is ours
        self.host_eof = False
        self.shut = False              # the socket's sending side is closed
        self.flight: deque[tuple[int, Any, memoryview | None]] = deque()   # (first number, payload, its buffer)
        self.unsent: tuple[Any, memoryview | None] | None = None  # read, but the port had no room
        self.pending = bytearray()     # of the guest's, not taken by the socket
        self.events = -1               # what the loop watches for; -1: not watched
        self.waits = False             # for room at the port
        self.starves = False           # for memory
        self.must_ack = False
        self.must_update = False       # the window was closed, and should be told when it opens
        self.listed = False
        self.deadline = 0.0
        self.rto = RTO
        self.retries = 0
        self.duplicates = 0
        self.recover = -1              # while retransmitting: the number up to which all may be lost
        self.begun = tcp.now
        self.heard = tcp.now
        self.challenged = 0.0
        self.challenges = 0
        half = (len(key) - 4) // 2
        source, target = key[half : 2 * half], key[:half]   # of what we send
        ports = key[-2:] + key[-4:-2]
        head = bytearray(ethernet.VNET) + mac + tcp.router_mac
        if v6:
            head += struct.pack("!HIHBB", ethernet.IPV6, 6 << 28, 0, ipv4.TCP, 64) + source + target
        else:
            head += struct.pack("!HBBHHHBBH", ethernet.IPV4, 0x45, 0, 0, 0, ipv4.DONT_FRAGMENT, 64, ipv4.TCP, 0)
            head += source + target
        self.at = len(head)            # where the TCP header begins
        self.ip_sum = total(head[ethernet.HEADER :])
        self.pseudo = total(ipv4.pseudo(ipv4.TCP, source, target, 0))
        head += ports + bytes(16)
        self.head = head
        self.overhead = self.at - ethernet.HEADER + 20
        struct.pack_into("<BBHHHH", head, 0, ethernet.F_NEEDS_CSUM, 0, 0, 0, self.at - ethernet.VNET, 16)
        self.gso = ethernet.GSO_TCPV6 if v6 else ethernet.GSO_TCPV4
        port.connections[key] = self
        port.half_open += 1
        tcp.added(self)

    # -- its beginning

    def begin_passive(self, seq: int, window: int) -> None:
        """From a guest's SYN; the socket connects."""
        self.rcv_nxt = (seq + 1) & M
        self.rcv_adv = self.rcv_nxt
        self.snd_wnd = self.max_wnd = max(1, window)
        self._settle()
        self._watch(WRITE)

    def begin_active(self) -> None:
        """Towards a guest; the socket is connected."""
        self.state = SYN_SENT
        self.snd_nxt = (self.iss + 1) & M
        self._syn(SYN)
        self.tcp.time(self, time.monotonic() + 1.0)
        self.rto = 1.0

    def _settle(self) -> None:
        """Make what the guest said of segments and windows sound."""
        least = 1220 if self.v6 else 536  # RFC 9293, 3.7.1
        most = self.tcp.mtu - self.overhead
        self.mss = min(most, max(88, self.mss)) if self.mss >= 0 else min(most, least)

    def _syn(self, flags: int) -> None:
        """A SYN or SYN-ACK, with options."""
        opts = struct.pack("!BBH", _MSS, 4, self.tcp.mtu - self.overhead)
        if flags == SYN or self.snd_scale >= 0:
            opts += bytes((_NOP, _SCALE_OPTION, 3, SCALE))
        self.rcv_adv = (self.rcv_nxt + min(65535, WINDOW)) & M
        acknowledged = self.rcv_nxt if flags & ACK else 0
        offset = 5 + len(opts) // 4
        segment = bytes(self.head[self.at : self.at + 4])
        segment += struct.pack("!IIHHHH", self.iss, acknowledged, offset << 12 | flags, 65535, 0, 0) + opts
        half = (len(self.key) - 4) // 2
        mac = bytes(self.head[12:18])
        self.port.offer(
            self.tcp.frame(mac, self.v6, self.key[half : 2 * half], self.key[:half], segment)
        )

    def _connected(self) -> None:
        """The outside has answered the socket's connect."""
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error:
            try:
                self.socket.getpeername()
            except OSError:  # not yet: this was another socket's event, whose number is ours now
                return
        else:
            key = self.key
            mac = bytes(self.head[12:18])
            seq = (self.rcv_nxt - 1) & M
            self.close()
            self.tcp.refuse(self.port, mac, key, self.v6, seq, error)
            return
        self.state = SYN_RECEIVED
        self.snd_nxt = (self.iss + 1) & M
        self._watch(0)
        self._syn(SYN | ACK)
        self.rto = 1.0
        self.tcp.time(self, time.monotonic() + 1.0)

    def _establish(self) -> None:
        self.state = ESTABLISHED
        self.port.half_open -= 1
        self.rto = RTO
        self.retries = 0
        self.deadline = 0.0

    # -- the loop

    def _watch(self, events: int) -> None:
        if events != self.events:
            self.events = events
            self.tcp.loop.watch(self.fileno, events, self._ready)

    def _unwatch(self) -> None:
        """For a socket that hangs up, which would be told again and again."""
        if self.events >= 0:
            self.events = -1
            self.tcp.loop.unwatch(self.fileno)

    def _ready(self, events: int) -> None:
        self.tcp.now = time.monotonic()
        if self.state == CONNECTING:
            self._connected()
        else:
            if events & WRITE and self.pending:
                self._flush()
            if events & READ and self.state == ESTABLISHED:
                self.pull()
            elif events & ~(READ | WRITE) and self.state != CLOSED:  # an error or a hang-up, in the midst of waiting
                if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.reset()
                else:
                    self._unwatch()
        self.tcp.flush()

    def resume(self) -> None:
        """There is room at the port."""
        if self.state == CLOSED:
            return
        if self.unsent is not None:
            payload, buffer = self.unsent
            self.unsent = None
            if not self._send(payload, buffer):
                return
        if self.must_ack:
            self.acknowledge()
        if self.state == ESTABLISHED:
            if self.host_eof and not self.fin_sent:
                self._finish()
            self.pull()

    # -- to the guest

    def pull(self) -> None:
        """Read the socket as far as the guest's window goes, and send that."""
        if self.host_eof or self.state != ESTABLISHED or self.unsent is not None or self.starves:
            return
        for _ in range(TURN):
            if self.port.blocked:
                self.port.wait(self)
                self._want_read(False)
                return
            flying = (self.snd_nxt - self.snd_una) & M
            room = min(self.snd_wnd, MAX_FLIGHT) - flying
            if room <= 0 or (flying and room < self.mss):
                self._want_read(False)
                if not flying and self.deadline == 0.0:  # the window is shut: ask now and then (RFC 9293, 3.8.6.1)
                    self.tcp.time(self, self.tcp.now + self.rto)
                return
            if self.tcp.held >= MAX_HELD:
                self.starves = True
                self.tcp.starved.append(self)
                self._want_read(False)
                return
            size = min(room, MAX_SEGMENT)
            if size > self.mss:
                size -= size % self.mss
            buffer = self.tcp.buffer()
            try:
                got = self.socket.recv_into(buffer, size)
            except BlockingIOError:
                self.tcp.give_back(buffer)
                self._want_read(True)
                return
            except OSError:
                self.tcp.give_back(buffer)
                self.reset()
                return
            if not got:
                self.tcp.give_back(buffer)
                self.host_eof = True
                self._want_read(False)
                self._finish()
                return
            if got >= KEEP:
                self.tcp.hold(BUFFER)
                sent = self._send(buffer[:got], buffer)
            else:
                payload = bytes(buffer[:got])
                self.tcp.give_back(buffer)
                self.tcp.hold(got + OVERHEAD)
                sent = self._send(payload, None)
            if not sent:
                self._want_read(False)
                return
            if got < size:  # there is no more yet
                break
        self._want_read(True)

    def _want_read(self, want: bool) -> None:
        events = (READ if want else 0) | (WRITE if self.pending else 0)
        if events != self.events and (events or self.events >= 0):
            self._watch(events)

    def _send(self, payload: Any, buffer: memoryview | None) -> bool:
        """Send new payload, or keep it until the port has room: False."""
        if not self._emit(PSH | ACK, self.snd_nxt, payload):
            self.unsent = (payload, buffer)
            self.port.wait(self)
            return False
        self.flight.append((self.snd_nxt, payload, buffer))
        self.snd_nxt = (self.snd_nxt + len(payload)) & M
        if self.deadline == 0.0:
            self.tcp.time(self, self.tcp.now + self.rto)
        return True

    def _finish(self) -> None:
        """Send our FIN; all that the socket had went before."""
        if self.fin_sent or self.unsent is not None:
            return
        if not self._emit(FIN | ACK, self.snd_nxt, b""):
            self.port.wait(self)
            return
        self.fin_sent = True
        self.fin_first = not self.fin_received
        self.snd_nxt = (self.snd_nxt + 1) & M
        if self.deadline == 0.0:
            self.tcp.time(self, self.tcp.now + self.rto)

    def _emit(self, flags: int, seq: int, payload: Any) -> bool:
        """One frame; False where the port has no room."""
        head, at, length = self.head, self.at, len(payload)
        gso = self.gso if length > self.mss else 0
        if gso:
            struct.pack_into("<BHH", head, 1, gso, at + 20 - ethernet.VNET, self.mss)
        else:
            head[1] = head[4] = head[5] = 0
        size = self.overhead + length
        if self.v6:
            struct.pack_into("!H", head, ethernet.HEADER + 4, size - 40)
            segment = size - 40
        else:
            struct.pack_into("!H", head, ethernet.HEADER + 2, size)
            struct.pack_into("!H", head, ethernet.HEADER + 10, (self.ip_sum + size) % 0xFFFF ^ 0xFFFF)
            segment = size - 20
        struct.pack_into(
            "!IIHHH", head, at + 4, seq, self.rcv_nxt, 0x5000 | flags, self._advertise(),
            (self.pseudo + segment) % 0xFFFF,
        )
        sent = self.port.send(head, payload) if length else self.port.send(head)
        if sent:
            self.must_ack = False
        return sent

    def _advertise(self) -> int:
        """The window field; what was promised stays promised (RFC 9293, 3.8.6.2.2)."""
        window = self.tcp.window() - len(self.pending)
        promised = (self.rcv_adv - self.rcv_nxt) & M
        if promised > 0x7FFFFFFF:
            promised = 0
        if window < promised + 2 * self.mss and window < WINDOW // 2:
            window = promised  # no silly steps
        shift = SCALE if self.snd_scale >= 0 else 0
        field = min(65535, max(0, window) >> shift)
        advertised = field << shift
        if advertised > promised:
            self.rcv_adv = (self.rcv_nxt + advertised) & M
        self.must_update = advertised < 2 * self.mss
        return field

    def acknowledge(self) -> None:
        """Tell the guest where we are."""
        self.listed = False
        if self.state in (CLOSED, CONNECTING, SYN_SENT) or not self.must_ack:
            return
        if not self._emit(ACK, self.snd_nxt, b""):
            self.port.wait(self)

    def _acknowledge_soon(self) -> None:
        self.must_ack = True
        if not self.listed:
            self.listed = True
            self.tcp.to_acknowledge.append(self)

    def _challenge(self) -> None:
        """RFC 5961, 7: an answer to what may be forged, not too often."""
        if self.tcp.now - self.challenged > 1.0:
            self.challenged, self.challenges = self.tcp.now, 0
        self.challenges += 1
        if self.challenges <= CHALLENGES:
            self._acknowledge_soon()

    # -- from the guest

    def segment(self, flags: int, seq: int, ack: int, window: int, frame: memoryview, start: int, payload: int,
                end: int) -> None:
        """A segment of this connection, whose payload is ``frame[payload:end]``."""
        self.heard = self.tcp.now
        if self.state <= SYN_SENT:
            if self.state == SYN_SENT:
                self._answered(flags, seq, ack, window, frame, start, payload)
            elif flags & RST and seq == self.rcv_nxt:
                self.abort()
            return
        length = end - payload
        if seq != self.rcv_nxt:
            old = (self.rcv_nxt - seq) & M
            whole = length + bool(flags & SYN) + bool(flags & FIN)
            if old > 0x7FFFFFFF or old >= max(whole, 1):  # ahead, or all of it old, as a keep-alive's is
                if flags & RST:
                    if (seq - self.rcv_nxt) & M < (self.rcv_adv - self.rcv_nxt) & M:
                        self._challenge()
                elif flags & SYN and self.state == SYN_RECEIVED and old == 1:
                    self._syn(SYN | ACK)
                else:
                    self.tcp.dropped += old > 0x7FFFFFFF
                    if length or flags & FIN or old == 1:
                        self._acknowledge_soon()
                    else:
                        self._challenge()
                    if flags & ACK and not flags & SYN and self.state >= ESTABLISHED:
                        self._acknowledged(seq, ack, window, 1)
                return
            if flags & SYN:
                flags &= ~SYN
                old -= 1
            payload += old
            length -= old
            seq = self.rcv_nxt
        if flags & RST:
            self.abort()
            return
        if flags & SYN:
            self._challenge()
            return
        if not flags & ACK or not self._acknowledged(seq, ack, window, length + (flags & FIN)):
            return
        if self.state == TIME_WAITING:
            return
        if length and not self.fin_received:
            room = (self.rcv_adv - self.rcv_nxt) & M
            if room > 0x7FFFFFFF:
                room = 0
            if length > room:  # a probe of a shut window, or one who doesn't care
                length = room
                flags &= ~FIN
                self._acknowledge_soon()
            if length:
                taken = self._take(frame[payload : payload + length])
                if taken < 0:
                    return
                if taken < length:
                    flags &= ~FIN
        if flags & FIN and not self.fin_received:
            self.fin_received = True
            self.rcv_nxt = (self.rcv_nxt + 1) & M
            self._acknowledge_soon()
            if not self.pending:
                self._shut()
        if self.state == ESTABLISHED:
            self._ended()

    def _answered(self, flags: int, seq: int, ack: int, window: int, frame: memoryview, start: int,
                  payload: int) -> None:
        """To our SYN (RFC 9293, 3.10.7.3)."""
        if flags & ACK and ack != self.snd_nxt:
            if not flags & RST:
                mac = bytes(self.head[12:18])
                self.tcp.refuse_segment(self.port, mac, self.key, self.v6, ack, None)
            return
        if flags & RST:
            if flags & ACK:
                self.abort()
            return
        if flags & (SYN | ACK) != SYN | ACK:
            return
        self.mss, self.snd_scale = options(frame[start + 20 : payload])
        self._settle()
        self.rcv_nxt = (seq + 1) & M
        self.rcv_adv = (self.rcv_nxt + 65535) & M
        self.snd_una = ack
        self.snd_wnd = self.max_wnd = max(1, window)  # not scaled in a SYN
        self.snd_wl1, self.snd_wl2 = seq, ack
        self._establish()
        self._acknowledge_soon()
        self.pull()

    def _acknowledged(self, seq: int, ack: int, window: int, length: int) -> bool:
        """Take the acknowledgement; whether the segment goes on (RFC 9293, 3.10.7.4, and RFC 5961, 5)."""
        acked = (ack - self.snd_una) & M
        flying = (self.snd_nxt - self.snd_una) & M
        if acked > flying:
            if acked <= 0x7FFFFFFF or (self.snd_una - ack) & M > self.max_wnd:
                if self.state == SYN_RECEIVED:
                    mac = bytes(self.head[12:18])
                    self.tcp.refuse_segment(self.port, mac, self.key, self.v6, ack, None)
                else:
                    self._challenge()
                return False
            return True  # old, but its data may be new
        if self.state == SYN_RECEIVED:
            if not acked:
                return False
            self.snd_una = (self.snd_una + 1) & M
            acked -= 1
            flying -= 1
            self.snd_wl1, self.snd_wl2 = seq, ack
            self._establish()
        scaled = window << self.snd_scale if self.snd_scale > 0 else window
        moved = scaled != self.snd_wnd
        newer = (seq - self.snd_wl1) & M
        if newer <= 0x7FFFFFFF and (newer or (ack - self.snd_wl2) & M <= 0x7FFFFFFF):
            self.snd_wnd, self.snd_wl1, self.snd_wl2 = scaled, seq, ack
            if scaled > self.max_wnd:
                self.max_wnd = scaled
        if acked:
            self._advance(ack, flying - acked)
        elif flying and not length and not moved:
            self.duplicates += 1
            if self.duplicates == 3 and self.recover < 0:
                self.recover = self.snd_nxt
                self._again()
        if self.state == ESTABLISHED and (self.events < 0 or not self.events & READ):  # else the loop will tell
            self.pull()
        return self.state != CLOSED

    def _advance(self, ack: int, left: int) -> None:
        """All before ``ack`` has arrived; ``left`` bytes are still on their way."""
        self.snd_una = ack
        self.duplicates = 0
        self.retries = 0
        self.rto = RTO
        flight = self.flight
        freed = 0
        while flight:
            first, payload, buffer = flight[0]
            done = (ack - first) & M
            if done > 0x7FFFFFFF or done < len(payload):
                break
            flight.popleft()
            if buffer is not None:
                freed += BUFFER
                self.tcp.give_back(buffer)
            else:
                freed += len(payload) + OVERHEAD
        if freed:
            self.tcp.hold(-freed)
        self.deadline = self.tcp.now + self.rto if left else 0.0
        if self.recover >= 0:
            if (ack - self.recover) & M <= 0x7FFFFFFF:
                self.recover = -1
            else:
                self._again()
        if self.fin_sent and not left and self.state == ESTABLISHED:
            self._ended()

    def _take(self, data: memoryview) -> int:
        """Payload in order, for the socket: how much of it we have now, -1 where that was the connection's end."""
        size = len(data)
        taken = 0
        if not self.pending:
            try:
                taken = self.socket.send(data)
            except BlockingIOError:
                pass
            except OSError:  # the outside won't have it
                self.reset()
                return -1
        if taken < size:
            if self.tcp.held >= MAX_HELD:  # more was promised to all together than there is: it will come again
                self.tcp.dropped += 1
                size = taken
            else:
                self.pending += data[taken:]
                self.tcp.hold(size - taken)
                self._watch(max(self.events, 0) | WRITE)
        self.rcv_nxt = (self.rcv_nxt + size) & M
        self._acknowledge_soon()
        return size

    def _flush(self) -> None:
        """The socket takes more."""
        pending = self.pending
        try:
            freed = self.socket.send(pending)
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        del pending[:freed]
        self.tcp.hold(-freed)
        if not pending:
            self._want_read(bool(self.events & READ) if self.events >= 0 else False)
            if self.fin_received:
                self._shut()
                self._ended()
                if self.state != ESTABLISHED:
                    return
        if self.must_update and self.tcp.window() - len(pending) >= min(WINDOW // 2, 4 * self.mss):
            self._acknowledge_soon()

    def _shut(self) -> None:
        """The guest has said all, and the socket has it."""
        if not self.shut:
            self.shut = True
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the outside has gone meanwhile; reading will tell

    def _ended(self) -> None:
        """Whether both directions are done with."""
        if not (self.shut and self.fin_sent) or self.snd_una != self.snd_nxt:
            if self.shut and self.host_eof and self.events >= 0:
                self._unwatch()  # the socket hangs up and has nothing to tell any more
            return
        if self.fin_first:
            self._let_go()
            self._free()
            self.state = TIME_WAITING
            self.tcp.wait(self)
        else:
            self.close()

    # -- time

    def timeout(self, now: float) -> None:
        """The deadline has come."""
        self.deadline = 0.0
        if self.state == TIME_WAITING:
            self.close()
            return
        if self.port.blocked:  # nothing was lost: it hasn't even left
            self.tcp.time(self, now + self.rto)
            return
        if self.state in (SYN_SENT, SYN_RECEIVED):
            if now - self.begun > CONNECT_TIME:
                self.abort()
                return
            self.tcp.retransmitted += 1
            self._syn(SYN if self.state == SYN_SENT else SYN | ACK)
        elif self.snd_una != self.snd_nxt:
            self.retries += 1
            if self.retries > RETRIES:
                self.reset()
                return
            self.recover = self.snd_nxt
            self._again()
        elif self.snd_wnd == 0 or self.unsent is not None:
            self.probe()
        else:
            return
        if self.state != CLOSED:
            self.rto = min(MAX_RTO, self.rto * 2)
            self.tcp.time(self, now + self.rto)

    def probe(self) -> None:
        """Make the guest say where it is: with a number that it has had (RFC 9293, 3.8.4)."""
        self._emit(ACK, (self.snd_una - 1) & M, b"")

    def _again(self) -> None:
        """Send again what the guest lacks first."""
        self.tcp.retransmitted += 1
        if self.flight:
            first, payload, _ = self.flight[0]
            skip = (self.snd_una - first) & M
            self._emit(PSH | ACK, self.snd_una, payload[skip:] if 0 < skip <= 0x7FFFFFFF else payload)
        elif self.fin_sent:
            self._emit(FIN | ACK, (self.snd_nxt - 1) & M, b"")

    # -- its end

    def reset(self) -> None:
        """The outside has broken off: so do we, towards the guest."""
        if self.state in (ESTABLISHED, SYN_RECEIVED):
            self.tcp.resets += 1
            self._emit(RST | ACK, self.snd_nxt, b"")
        self.close()

    def abort(self) -> None:
        """The guest has broken off, or can't be had: the outside hears RST."""
        if self.state < TIME_WAITING:
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        self.close()

    def close(self) -> None:
        """Forget it."""
        if self.state == CLOSED:
            return
        if self.state < ESTABLISHED:
            self.port.half_open -= 1
        if self.state != TIME_WAITING:
            self._let_go()
        self.state = CLOSED
        self._free()
        if self.port.connections.get(self.key) is self:
            del self.port.connections[self.key]
        self.tcp.removed(self)

    def _let_go(self) -> None:
        """Close the socket."""
        self._unwatch()
        self.socket.close()
        self.tcp.open -= 1

    def _free(self) -> None:
        """Give back what it holds."""
        freed = len(self.pending)
        if self.unsent is not None:
            self.flight.append((0, *self.unsent))
        for _, payload, buffer in self.flight:
            if buffer is not None:
                freed += BUFFER
                self.tcp.give_back(buffer)
            else:
                freed += len(payload) + OVERHEAD
        self.flight.clear()
        self.pending.clear()
        self.unsent = None
        if freed:
            self.tcp.hold(-freed)
