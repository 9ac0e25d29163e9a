"""The interface between a CPU engine and the rest of the machine, and what all engines share.

An engine derives from ``Vcpu`` and defines ``run``, ``runnable`` and, where a running guest has to be
poked, ``kick`` (calling this one too). Here live sleeping and waking: ``wake_word`` is a futex that
counts kicks. ``wait`` sleeps only while the count is what it was when the last ``wait`` returned, so a
kick that arrives between ``run`` and ``wait`` is never lost; at worst ``wait`` returns once too often.

The alarm is a POSIX timer that signals the owner's thread (SIGRTMIN+1) and kicks it, whether it sleeps
in ``wait`` or runs guest code. The handler runs on the alternate stack, as a guest's rsp is not ours.

No locks. ``kick`` and ``set_alarm`` may be called from any thread; ``kick`` from signal handlers too.
"""

import cython
from cython.cimports.libc.stdint import int64_t
from cython.cimports.posix.time import CLOCK_MONOTONIC, itimerspec

_handler_installed = cython.declare(cython.bint, False)


@cython.cclass
class InterruptController:
    """What a vCPU asks of its local APIC. This one never interrupts and has no registers."""

    def pending(self):
        return -1

    def acknowledge(self):
        return -1

    def read_msr(self, index, value):
        return 1

    def write_msr(self, index, value):
        return 1

    def read_cr8(self):
        return 0

    def write_cr8(self, value):
        pass

    def reset(self):
        pass

    def set_tsc_offset(self, offset):
        self.tsc_offset = offset


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _alarm(signum: cython.int, info: cython.pointer(siginfo_t), context: cython.p_void) -> cython.void:
    cython.cast(Vcpu, info.value).kick()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _install_handler() -> cython.void:
    # The handler is the process's, the same for every vCPU, so that two threads may well install it at once.
    global _handler_installed
    action: sigaction_t
    if not _handler_installed:
        action.sa_sigaction = _alarm
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART
        sigfillset(cython.address(action.sa_mask))
        sigaction(SIGRTMIN + 1, cython.address(action), cython.NULL)
        _handler_installed = True


@cython.cclass
class Vcpu:
    """One virtual CPU. The thread that calls ``attach`` and then ``run`` owns it."""

    def __cinit__(self):
        self.index = 0
        self.wake_word = 0
        self.seen = 0
        self.sleeping = 0
        self.alarm_ns = 0
        self.timer_made = False
        self.stops = 0
        self.stop_request = 0
        self.nmi_request = 0
        self.init_request = 0
        self.sipi_request = 0

    def __dealloc__(self):
        self.detach()

    def run(self):
        return EXIT_ERROR

    def runnable(self):
        return self.stop_request or self.nmi_request or self.init_request or self.sipi_request

    def kick(self):
        atomic_add(cython.address(self.wake_word), 1)
        if self.sleeping:
            syscall(SYS_futex, cython.address(self.wake_word), FUTEX_WAKE_PRIVATE, 1, cython.NULL, cython.NULL, 0)

    def wait(self):
        # A signal ends the futex call early (or restarts it): its handler counted, so the loop ends by itself.
        atomic_add(cython.address(self.sleeping), 1)  # before the look at wake_word, in every thread's eyes
        while self.wake_word == self.seen:
            syscall(
                SYS_futex, cython.address(self.wake_word), FUTEX_WAIT_PRIVATE, self.seen,
                cython.NULL, cython.NULL, 0,
            )
        self.sleeping = 0
        self.seen = self.wake_word

    def stood_still(self):
        self.stops += 1

    def attach(self):
        event: sigevent
        handle: timer_t = cython.NULL
        self.detach()
        _install_handler()
        event.sigev_notify = SIGEV_THREAD_ID
        event.sigev_signo = SIGRTMIN + 1
        event.value = cython.cast(cython.p_void, self)
        event.thread = cython.cast(cython.int, syscall(SYS_gettid))
        if timer_create(CLOCK_MONOTONIC, cython.address(event), cython.address(handle)) != 0:
            return -1
        self.timer = handle
        self.timer_made = True
        if self.alarm_ns:
            self.set_alarm(self.alarm_ns)
        return 0

    def detach(self):
        if self.timer_made:
            self.timer_made = False
            timer_delete(self.timer)

    def set_alarm(self, deadline_ns):
        when: itimerspec
        self.alarm_ns = deadline_ns
        if not self.timer_made:
            return
        when.it_interval.tv_sec = 0
        when.it_interval.tv_nsec = 0
        when.it_value.tv_sec = deadline_ns // 1000000000
        when.it_value.tv_nsec = deadline_ns % 1000000000
        timer_settime(self.timer, TIMER_ABSTIME, cython.address(when), cython.NULL)

    # -- for the event loop and for tests

    def wakeups(self) -> int:
        """How often this vCPU was kicked."""
        return self.wake_word

    def alarm(self) -> int:
        """The deadline of the alarm, CLOCK_MONOTONIC in ns; 0 when disarmed."""
        return self.alarm_ns

    def requests(self) -> dict:
        """What other threads asked of this vCPU and it hasn't taken yet."""
        return {
            "stop": self.stop_request,
            "nmi": self.nmi_request,
            "init": self.init_request,
            "sipi": self.sipi_request,
        }

    def ask(self, requests: dict):
        """Restore what ``requests`` gave, but for the stop."""
        self.nmi_request = requests["nmi"]
        self.init_request = requests["init"]
        self.sipi_request = requests["sipi"]

    def kick_py(self):
        """``kick`` for Python threads."""
        self.kick()

    def request_stop(self, stop: cython.bint = True):
        """Make ``run`` return EXIT_KICK soon, and every time, until called with ``False``."""
        self.stop_request = stop
        if stop:
            self.kick()

    def debug_exit(self) -> tuple[str, int]:
        """After EXIT_DEBUG: why (write, read, access, break, step) and the address."""
        return ("", "write", "read", "access", "break", "step")[self.exit.data], self.exit.address

    def sleep(self, deadline_ns: int64_t):
        """Attach, set the alarm and wait for it or for a kick, as a vCPU's thread does; for tests."""
        with cython.nogil:
            self.attach()
            self.set_alarm(deadline_ns)
            self.wait()
            self.detach()
