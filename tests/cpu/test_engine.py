"""Sleeping, waking and alarms of a vCPU: nothing is lost between threads."""

import threading
import time

from hostel.cpu.engine import InterruptController, Vcpu


def test_a_kick_before_the_sleep_is_not_lost():
    vcpu = Vcpu()
    vcpu.kick_py()
    vcpu.sleep(0)
    assert vcpu.wakeups() == 1


def test_a_kick_ends_the_sleep():
    vcpu, done = Vcpu(), threading.Event()

    def sleeper():
        vcpu.sleep(0)
        done.set()

    thread = threading.Thread(target=sleeper)
    thread.start()
    assert not done.wait(0.05)
    vcpu.kick_py()
    assert done.wait(10)
    thread.join()


def test_the_alarm_ends_the_sleep_and_kicks():
    vcpu = Vcpu()
    deadline = time.monotonic_ns() + 5_000_000
    vcpu.sleep(deadline)
    assert time.monotonic_ns() >= deadline
    assert vcpu.wakeups() == 1 and vcpu.alarm() == deadline


def test_an_alarm_in_the_past_rings_at_once():
    Vcpu().sleep(1)


def test_two_threads_hand_each_other_the_turn_without_losing_a_kick():
    a, b = Vcpu(), Vcpu()
    rounds = 2000
    turns = []

    def run(mine, other, name):
        for _ in range(rounds):
            mine.sleep(0)
            turns.append(name)
            other.kick_py()

    threads = [threading.Thread(target=run, args=args) for args in ((a, b, "a"), (b, a, "b"))]
    for t in threads:
        t.start()
    a.kick_py()
    for t in threads:
        t.join(30)
    assert turns == ["a", "b"] * rounds


def test_requests():
    vcpu = Vcpu()
    vcpu.request_stop()
    assert vcpu.requests()["stop"] == 1 and vcpu.wakeups() == 1
    vcpu.request_stop(False)
    assert vcpu.requests()["stop"] == 0 and vcpu.wakeups() == 1
    assert InterruptController() is not None
