"""The thread of one vCPU: run guest code, answer its exits, sleep while it halts.

All of it happens without the GIL; a device in plain Python takes it for its own access (bus/space.PyRegion).
The local APIC's page answers here, since each vCPU sees its own at the same address (SDM vol. 3, 11.4.1).
``run`` comes back only for what the machine must decide: a stop request, a triple fault, an engine's error.
"""

import signal

import cython
from cython.cimports.hostel.cpu.engine import (
    EXIT_DEBUG,
    EXIT_HLT,
    EXIT_KICK,
    EXIT_MMIO,
    EXIT_NONE,
    EXIT_PIO,
    EXIT_SHUTDOWN,
)

_NAMES = ("none", "pio", "mmio", "hlt", "shutdown", "kick", "error", "debug")

# What guest code may raise, and the engine's alarm; everything else is for the event loop's thread.
_MINE = {signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGTRAP, signal.SIGRTMIN + 1}


@cython.cclass
class Runner:
    """``run()`` on the thread that is to be the vCPU's; the rest from any thread."""

    def __init__(self, vcpu: Vcpu, apic: LocalApic, pio: Space, mmio: Space):
        self.vcpu = vcpu
        self.apic = apic
        self.pio = pio
        self.mmio = mmio
        vcpu.ports = pio
        memset(self.exits, 0, cython.sizeof(self.exits))
        self.lapic_accesses = 0

    def run(self) -> str:
        """Run until ``kick`` (``stop()`` was called), ``shutdown`` (a triple fault), ``debug`` (``Vcpu.debug_exit``
        tells why) or ``error``."""
        reason: cython.int
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - _MINE)
        with cython.nogil:
            reason = -1
            if self.vcpu.attach() == 0:
                reason = self.loop()
                self.vcpu.detach()
        if reason == EXIT_KICK:
            return "kick"
        if reason == EXIT_DEBUG:
            return "debug"
        return "shutdown" if reason == EXIT_SHUTDOWN else "error"

    def stop(self, stop: cython.bint = True):
        """Make ``run`` return soon with ``kick``; undo it with ``False`` before running again."""
        self.vcpu.request_stop(stop)

    def statistics(self) -> dict:
        """Exits by reason, of which ``lapic`` of those to memory went to the local APIC."""
        i: cython.int
        out = {}
        for i in range(len(_NAMES)):
            if self.exits[i]:
                out[_NAMES[i]] = self.exits[i]
        if self.lapic_accesses:
            out["lapic"] = self.lapic_accesses
        return out

    def loop(self):
        reason: cython.int
        while True:
            reason = self.vcpu.run()
            self.exits[reason & (REASONS - 1)] += 1
            if reason == EXIT_PIO or reason == EXIT_MMIO:
                self.answer()
            elif reason == EXIT_HLT:
                self.vcpu.wait()
            elif reason != EXIT_NONE:
                return reason

    def answer(self):
        address: uint64_t = self.vcpu.exit.address
        size: cython.int = self.vcpu.exit.size
        if self.vcpu.exit.reason == EXIT_PIO:
            if self.vcpu.exit.is_write:
                self.pio.write(address, size, self.vcpu.exit.data)
            else:
                self.vcpu.exit.data = self.pio.read(address, size)
        elif self.apic.claims(address):
            self.lapic_accesses += 1
            if self.vcpu.exit.is_write:
                self.apic.mmio_write(address & 0xFFF, size, self.vcpu.exit.data)
            else:
                self.vcpu.exit.data = self.apic.mmio_read(address & 0xFFF, size)
        elif self.vcpu.exit.is_write:
            self.mmio.write(address, size, self.vcpu.exit.data)
        else:
            self.vcpu.exit.data = self.mmio.read(address, size)
