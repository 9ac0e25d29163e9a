"""``python3 kernels.py NAME [PERCENT]``: small programs as those of pyperformance, written anew. Each measures itself
and says so as the C programs beside it do (bench.h)."""

import hashlib
import itertools
import json
import math
import re
import sys
import time


def random_numbers(seed=42):
    """The same everywhere and in every version (Lehmer, MINSTD)."""
    while True:
        seed = seed * 48271 % 0x7FFFFFFF
        yield seed


def nbody(rounds):
    """Floats and tuples: five bodies that attract one another."""
    bodies = [[float(i), i * 0.7 - 1, 2.0 / (i + 1), 0.1 * i, -0.05 * i, 0.02, 1.0 + i] for i in range(5)]
    pairs = list(itertools.combinations(bodies, 2))
    for _ in range(rounds):
        for a, b in pairs:
            dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
            force = 0.001 / (dx * dx + dy * dy + dz * dz + 0.01) ** 1.5
            for body, sign, mass in ((a, -1, b[6]), (b, 1, a[6])):
                body[3] += sign * dx * force * mass
                body[4] += sign * dy * force * mass
                body[5] += sign * dz * force * mass
        for body in bodies:
            for axis in range(3):
                body[axis] += 0.001 * body[axis + 3]
    return [f"{value:.9e}" for body in bodies for value in body]


def fannkuch(n):
    """Lists of small integers, turned round and round."""
    best = checksum = 0
    for number, permutation in enumerate(itertools.permutations(range(n))):
        flips, work = 0, list(permutation)
        while first := work[0]:
            work[: first + 1] = work[first::-1]
            flips += 1
        best = max(best, flips)
        checksum += -flips if number & 1 else flips
    return best, checksum


class Task:
    """One of those that ``richards`` schedules: what it is sent, it works on and sends to another."""

    def __init__(self, name, priority):
        self.name, self.priority, self.inbox, self.done = name, priority, [], 0

    def ready(self):
        return bool(self.inbox)

    def run(self, scheduler):
        packet = self.inbox.pop(0)
        self.done += 1
        self.work(packet, scheduler)

    def work(self, packet, scheduler):
        raise NotImplementedError


class Device(Task):
    def work(self, packet, scheduler):
        packet.count += 1
        scheduler.send(packet.count % len(scheduler.tasks), packet)


class Worker(Task):
    def work(self, packet, scheduler):
        packet.data = [(value * 7 + self.name) % 26 for value in packet.data]
        packet.count += sum(packet.data) & 1
        scheduler.send((self.name + packet.data[0] + 1) % len(scheduler.tasks), packet)


class Packet:
    def __init__(self, number):
        self.count, self.data = number, [number, 2, 3, 4]


class Scheduler:
    def __init__(self):
        self.tasks = [(Device if i % 2 else Worker)(i, 10 - i) for i in range(6)]

    def send(self, number, packet):
        self.tasks[number].inbox.append(packet)

    def step(self):
        ready = [task for task in self.tasks if task.ready()]
        max(ready, key=lambda task: (task.priority + len(task.inbox), -task.name)).run(self)


def richards(steps):
    """Classes, methods and attributes: a small operating system."""
    scheduler = Scheduler()
    for number in range(5):
        scheduler.send(number, Packet(number))
    for _ in range(steps):
        scheduler.step()
    return [task.done for task in scheduler.tasks]


def json_both_ways(rounds):
    """json.dumps and loads, of nested dictionaries."""
    people = [
        {"id": i, "name": f"name {i}", "tags": ["a", "b" * (i % 7)], "score": i / 7, "nested": {"ok": i % 2 == 0}}
        for i in range(300)
    ]
    for _ in range(rounds):
        text = json.dumps(people)
        people = json.loads(text)
        people[0]["id"] += 1
    return hashlib.sha256(json.dumps(people).encode()).hexdigest()


def regex(rounds):
    """Searches, groups and replacements in text like a web server's log."""
    numbers = random_numbers()
    log = "\n".join(
        f"10.0.{next(numbers) % 256}.{i % 256} - [{i:02}/Nov/2026] \"GET /item/{next(numbers) % 999}.html?q=a{i}\" 200"
        for i in range(400)
    )
    found = 0
    for _ in range(rounds):
        found += len(re.findall(r"(\d+)\.(\d+)\.(\d+)\.(\d+) ", log))
        found += sum(int(match[2]) for match in re.finditer(r'"(GET|POST) /item/(\d+)\.html\?(?:\w+=\w+)*"', log))
        found += len(re.sub(r"[aeiou]|\d\d", "", log))
    return found


def strings(rounds):
    """Dictionaries and strings: counting words."""
    numbers = random_numbers()
    words = [f"word{next(numbers) % 500:x}" for _ in range(3000)]
    counts = {}
    for number in range(rounds):
        text = " ".join(words)
        for word in text.upper().replace("WORD", "w").split():
            counts[word] = counts.get(word, 0) + 1
        words[number % 3000] = words[number % 3000][::-1]
    return len(counts), sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]


def queens(n):
    """Generators and sets: N queens."""
    columns, found = range(n), 0
    for places in itertools.permutations(columns):
        if n == len({places[i] + i for i in columns}) == len({places[i] - i for i in columns}):
            found += 1
    return found


def spectral(n):
    """Function calls with floats: a spectral norm."""
    def element(i, j):
        return 1.0 / ((i + j) * (i + j + 1) // 2 + i + 1)

    def times(vector, turned):
        return [
            sum((element(j, i) if turned else element(i, j)) * vector[j] for j in range(n)) for i in range(n)
        ]

    u = [1.0] * n
    for _ in range(2):
        v = times(times(u, False), True)
        u = times(times(v, False), True)
    return f"{math.sqrt(sum(a * b for a, b in zip(u, v)) / sum(b * b for b in v)):.12f}"  # noqa: B905


def pidigits(digits):
    """Large integers: a spigot of pi."""
    out, q, r, t, k, n, j = [], 1, 0, 1, 1, 3, 3
    while len(out) < digits:
        if 4 * q + r - t < n * t:
            out.append(n)
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, j = q * k, (2 * q + r) * j, t * j, k + 1, (q * (7 * k + 2) + r * j) // (t * j), j + 2
    return "".join(map(str, out))


KERNELS = {
    "nbody": (nbody, 25_000), "fannkuch": (fannkuch, 9), "richards": (richards, 60_000),
    "json": (json_both_ways, 150), "regex": (regex, 60), "strings": (strings, 300), "queens": (queens, 9),
    "spectral": (spectral, 300), "pidigits": (pidigits, 2000),
}
WHOLE = {"fannkuch", "queens", "spectral"}  # too small for percents: their amount isn't how long they take


def main(name, percent=100):
    kernel, amount = KERNELS[name]
    amount = amount - (percent < 50) if name in WHOLE else max(1, amount * percent // 100)
    print("@WORK", flush=True)
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    result = kernel(amount)
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    checksum = hashlib.sha256(repr(result).encode()).hexdigest()[:16]
    print(f"@DONE {checksum} {wall} {cpu}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
