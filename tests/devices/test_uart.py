"""16550A: what Linux's 8250 driver checks, interrupts, flow control, and that no byte is lost or reordered."""

import hashlib
import os
import random
import select
import threading

import pytest

from hostel.board.pic import Pic
from hostel.bus.irq import IrqLine
from hostel.bus.space import Space
from hostel.devices.uart import Uart

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
DTR, RTS, OUT1, OUT2, LOOP = 1, 2, 4, 8, 16
RING = 131072


class Port:
    def __init__(self, **options):
        self.pio, self.irq = Space("pio"), IrqLine((Pic(), 4))
        self.uart = Uart(self.irq, **options)
        self.pio.map(0x3F8, 8, self.uart)

    def __getitem__(self, register):
        return self.pio.read_from_python(0x3F8 + register, 1)

    def __setitem__(self, register, value):
        self.pio.write_from_python(0x3F8 + register, 1, value)

    def open(self, ier=0, fcr=1):
        self[FCR] = fcr
        self[MCR] = DTR | RTS | OUT2
        self[IER] = ier
        return self

    def receive(self):
        out = bytearray()
        while self[LSR] & 1:
            out.append(self[RBR])
        return bytes(out)


def readable(fd):
    return bool(select.select([fd], [], [], 0)[0])


def test_reset_state():
    p = Port()
    assert [p[r] for r in (IER, IIR, LCR, MCR, LSR, SCR)] == [0, 1, 0, 0, 0x60, 0]
    assert p[MSR] == 0xB0 and p.irq.level == 0


def test_divisor_latch():
    p = Port()
    p[LCR] = 0x83
    p[DLL], p[DLM] = 0x34, 0x12
    assert (p[DLL], p[DLM]) == (0x34, 0x12)
    p[LCR] = 3
    assert (p[RBR], p[IER]) == (0, 0)
    assert p.uart.take() == b""


def test_linux_autoconfig():
    # drivers/tty/serial/8250/8250_port.c, autoconfig() and autoconfig_16550a()
    p = Port()
    p[IER] = 0
    assert p[IER] & 15 == 0
    p[IER] = 15
    assert p[IER] & 15 == 15
    p[IER] = 0
    p[MCR] = LOOP | OUT2 | RTS
    assert p[MSR] & 0xF0 == 0x90
    p[MCR] = 0
    p[LCR] = 0xBF  # no EFR: this is a plain register
    p[FCR] = 0
    p[LCR] = 0
    p[FCR] = 1
    assert p[IIR] >> 6 == 3  # 16550A
    p[LCR] = 0
    p[FCR] = 0x21  # no 64-byte FIFO
    assert p[IIR] >> 5 == 6
    p[LCR] = 0x80
    p[FCR] = 0x21
    assert p[IIR] >> 5 == 6
    p[LCR] = 0
    p[IER] = 0x40  # not an XScale
    assert p[IER] == 0
    p[SCR] = 0xA5
    assert p[SCR] == 0xA5


def test_linux_startup_tests_of_the_thre_interrupt():
    p = Port().open()
    p[IER] = 2
    assert p[IIR] & 15 == 2
    p[IER] = 0
    p[IER] = 2
    assert p[IIR] & 15 == 2 and p[LSR] & 0x60 == 0x60
    assert p[IIR] & 15 == 1  # reading takes it back
    p[IER] = 0


def test_loopback_sends_to_the_receiver_and_nowhere_else():
    p = Port().open(fcr=7)
    p.uart.send(b"outside")
    p[MCR] = LOOP
    assert p[LSR] & 1 == 0
    for byte in range(20):
        p[THR] = byte
    assert p[LSR] & 2  # overrun
    assert p[LSR] & 2 == 0
    assert p.receive() == bytes(range(16))
    assert p.uart.take() == b""
    p[MCR] = RTS
    assert p.receive() == b"outside"


def test_loopback_modem_lines_and_deltas():
    p = Port()
    p[MCR] = LOOP
    p[MSR]
    assert p[MSR] == 0
    p[MCR] = LOOP | DTR | OUT1
    assert p[MSR] == 0x62  # DSR with its delta; RI has one only as it ends
    p[MCR] = LOOP
    assert p[MSR] == 0x06
    assert p[MSR] == 0


def test_modem_status_interrupt():
    p = Port().open(ier=8)
    p[MCR] = LOOP | OUT2
    p[MCR] = OUT2
    assert p.irq.level == 1 and p[IIR] & 15 == 0
    assert p[MSR] & 15
    assert p.irq.level == 0


def test_thre_interrupt_rearms_with_each_byte():
    p = Port().open(ier=2)
    assert p.irq.level == 1
    assert p[IIR] & 15 == 2
    assert p.irq.level == 0
    p[THR] = 0x41
    assert p.irq.level == 1 and p[IIR] & 15 == 2 and p.irq.level == 0
    p[IER] = 0
    p[THR] = 0x42
    assert p.irq.level == 0
    assert p.uart.take() == b"AB"


def test_out2_gates_the_interrupt():
    p = Port().open(ier=2)
    p[MCR] = DTR | RTS
    assert p.irq.level == 0 and p[IIR] & 15 == 2


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_trigger_levels_and_timeout(fcr, trigger):
    p = Port().open(ier=1, fcr=fcr)
    p.uart.send(bytes(20))
    assert p.irq.level == 1
    kinds = []
    while p[LSR] & 1:
        kinds.append(p[IIR] & 15)
        p[RBR]
    assert kinds == [4] * (20 - trigger + 1) + [12] * (trigger - 1)
    assert p.irq.level == 0


def test_interrupt_priorities():
    p = Port()
    p.open(ier=15)
    p[MCR] = LOOP
    p[MCR] = OUT2 | RTS | DTR | LOOP
    p[THR] = 0
    for _ in range(20):
        p[THR] = 0
    kinds = [p[IIR] & 15]
    p[LSR]
    kinds.append(p[IIR] & 15)
    p.receive()
    kinds.append(p[IIR] & 15)
    kinds.append(p[IIR] & 15)
    p[MSR]
    kinds.append(p[IIR] & 15)
    assert kinds == [6, 4, 2, 0, 1]


def test_without_fifo_there_is_one_byte_at_a_time():
    p = Port().open(ier=1, fcr=0)
    p.uart.send(b"abc")
    assert p[IIR] == 4
    assert p.receive() == b"abc"


def test_rts_holds_back_and_clearing_the_fifo_early_loses_nothing():
    p = Port()
    p.uart.send(b"typed early")
    assert p[LSR] & 1 == 0
    p[FCR] = 7  # a driver starts up
    p.open(ier=1)
    assert p.receive() == b"typed early"
    p.uart.send(b"for the next one")
    assert p[RBR] == ord("f")
    p[MCR] = 0  # and stops
    assert p[LSR] & 1 == 0 and p.irq.level == 0
    p[FCR] = 7
    p[FCR] = 0
    p.open()
    assert p.receive() == b"or the next one"


def test_clearing_the_fifo_drops_what_is_in_it():
    p = Port().open()
    p.uart.send(bytes(range(40)))
    p[FCR] = 3
    assert p.receive() == bytes(range(16, 40))


def test_without_the_gate_bytes_come_at_once():
    p = Port(rts_gate=False)
    p.uart.send(b"x")
    assert p[LSR] & 1 and p[RBR] == ord("x")


def test_full_transmit_ring_withholds_thre_until_there_is_room():
    p = Port().open(ier=2)
    sent = 0
    while p[LSR] & 0x20:
        for _ in range(16):  # as a driver does
            p[THR] = sent & 0xFF
            sent += 1
    assert RING - 16 < sent <= RING and p[LSR] & 0x60 == 0
    p[IIR]
    assert p.irq.level == 0
    first = p.uart.take(16)
    assert p[LSR] & 0x60 == 0x60 and p.irq.level == 1
    rest = b"".join(iter(lambda: p.uart.take(), b""))
    assert first + rest == bytes(i & 0xFF for i in range(sent))
    assert p.uart.statistics()["overruns"] == 0


def test_a_guest_that_ignores_thre_loses_only_its_own_bytes():
    p = Port().open()
    for _ in range(RING + 5):
        p[THR] = 0x55
    assert p.uart.statistics()["overruns"] == 5
    assert len(p.uart.take(1 << 20)) == RING


def test_full_receive_ring_takes_what_fits_and_tells_when_there_is_room():
    p = Port().open()
    data = os.urandom(RING + 1000)
    assert p.uart.send(data) == RING
    assert p.uart.send(data[RING:]) == 0 and p.uart.free_space() == 0
    got = bytearray()
    while not readable(p.uart.rx_fd):
        got.append(p[RBR])
    assert RING // 4 < len(got) < RING
    assert p.uart.send(data[RING:]) == 1000
    assert not readable(p.uart.rx_fd)
    assert bytes(got) + p.receive() == data
    assert p.uart.send(b"") == 0


def test_transmit_event():
    p = Port().open()
    assert not readable(p.uart.tx_fd)
    p[THR] = 1
    p[THR] = 2
    assert readable(p.uart.tx_fd)
    assert p.uart.take(1) == b"\1"
    assert readable(p.uart.tx_fd)
    assert p.uart.take() == b"\2" and not readable(p.uart.tx_fd)
    assert p.uart.take() == b""


def test_both_directions_at_once_lose_and_reorder_nothing():
    # A guest's thread by polling, a host's thread by events, odd sizes on both ends
    p = Port().open()
    dice = random.Random(4)
    to_guest, to_host = dice.randbytes(300_000), dice.randbytes(300_000)
    got_guest, got_host = bytearray(), bytearray()

    def guest():
        sent = 0
        while sent < len(to_host) or len(got_guest) < len(to_guest):
            if sent < len(to_host) and p[LSR] & 0x20:
                for byte in to_host[sent : sent + 16]:
                    p[THR] = byte
                sent += 16
            for _ in range(16):
                if p[LSR] & 1:
                    got_guest.append(p[RBR])

    thread = threading.Thread(target=guest)
    thread.start()
    at = 0
    poll = select.poll()
    poll.register(p.uart.tx_fd, select.POLLIN)
    poll.register(p.uart.rx_fd, select.POLLIN)
    blocked = False
    while at < len(to_guest) or len(got_host) < len(to_host):
        if at < len(to_guest) and not blocked:
            size = dice.randrange(1, 200_000)
            taken = p.uart.send(to_guest[at : at + size])
            at += taken
            blocked = taken < min(size, len(to_guest) - at + taken)
        for fd, _ in poll.poll(5000):
            if fd == p.uart.rx_fd:
                os.eventfd_read(fd)
                blocked = False
            else:
                got_host += p.uart.take(dice.randrange(1, 100_000))
    thread.join()
    assert hashlib.sha256(got_guest).digest() == hashlib.sha256(to_guest).digest()
    assert hashlib.sha256(got_host).digest() == hashlib.sha256(to_host).digest()


def test_save_and_load():
    p = Port().open(ier=3, fcr=0x81)
    p.uart.send(bytes(range(100)))
    p[RBR]
    p[THR] = 7
    state = p.uart.save()
    other = Port()
    other.uart.load(state)
    assert other.uart.save() == state
    assert other.irq.level == 1 and readable(other.uart.tx_fd)
    assert other.receive() == bytes(range(1, 100)) and other.uart.take() == b"\7"
    with pytest.raises(ValueError):
        other.uart.load({"version": 0})


def test_close_is_final_and_harmless():
    p = Port().open()
    p.uart.close()
    p.uart.close()
    p[THR] = 1  # a last byte of a guest that is being stopped
    assert p[LSR] & 0x60 == 0x60
