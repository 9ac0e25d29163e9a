"""Memory images against a model in plain Python: what is in the file, where runs say it is, and what comes back."""

import itertools
import mmap
import os
import random
import struct
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostel.base.errors import MemoryError_
from hostel.memory import image, pagefile
from hostel.memory.ram import Ram

PAGE = 4096
HIGH = 1 << 32
COPIES = 64  # of a page that fills a stretch of memory
# (gpa, pages, ROM), not in order; the last two touch.
SLOTS = [(HIGH, 300, False), (0, 40, False), (1 << 20, 4, True), (HIGH + 300 * PAGE, 20, False)]


def new_ram():
    ram = Ram()
    for gpa, pages, rom in SLOTS:
        ram.add(gpa, pages * PAGE, rom)
    return ram


def new_file():
    return tempfile.TemporaryFile(buffering=0)


def page_of(content):
    """A page for each number; none for 0."""
    return struct.pack("<Q", content) * 512


def expand(runs):
    """{guest page: (file, page)}, having looked at the form."""
    out, end = {}, 0
    for first, count, file, page in image.RUN.iter_unpack(runs):
        assert count and first >= end
        end = first + count
        out |= {first + i: (file, page + i) for i in range(count)}
    return out


def collapse(where):
    """The runs: as long as they can be, none in two slots."""
    out = []
    starts = {gpa // PAGE for gpa, _, _ in SLOTS}
    for number in sorted(where):
        file, page = where[number]
        if out and number not in starts:
            first, count, last_file, last_page = out[-1]
            if (first + count, last_file, last_page + count) == (number, file, page):
                out[-1] = (first, count + 1, file, last_page)
                continue
        out.append((number, 1, file, page))
    return b"".join(image.RUN.pack(*run) for run in out)


class Model:
    """A machine's memory, and what it was taken from."""

    def __init__(self):
        self.files = []       # of bytes
        self.snapshots = []   # (pages, runs)
        self.open = []
        self.ram = new_ram()
        self.pages = {}       # that aren't zero
        self.dirty = set()
        self.runs = b""
        self.base = {}, b""   # the pages and runs of the snapshot that it stands on

    def write(self, number, content):
        for i, one in enumerate(content):
            self.ram.write((number + i) * PAGE, page_of(one))
            self.pages[number + i] = page_of(one)
            self.dirty.add(number + i)

    def discard(self, number, count):
        assert self.ram.discard(number * PAGE, count * PAGE)
        for i in range(count):
            self.pages.pop(number + i, None)
            self.dirty.add(number + i)

    def snapshot(self, compare):
        base, where, written, seen = expand(self.runs), {}, [], {}
        zero = same = duplicate = 0
        for gpa, count, rom in sorted(SLOTS):
            for number in range(gpa // PAGE, gpa // PAGE + count) if not rom else ():
                page = self.pages.get(number, bytes(PAGE))
                if number not in self.dirty:
                    if number in base:
                        where[number] = base[number]
                elif page == bytes(PAGE):
                    zero += 1
                elif compare and number in base and self.stored(base[number]) == page:
                    same += 1
                    where[number] = base[number]
                elif page in seen:
                    first, copies = seen[page]
                    file, before = where.get(number - 1, (None, 0)) if number > gpa // PAGE else (None, 0)
                    behind = before - first + 1 if file == len(self.files) and first <= before < first + copies else 0
                    if behind == copies and copies < COPIES:  # the pages before it are the same: once more
                        if first + copies != len(written):
                            first, copies = len(written), 0
                        seen[page] = (first, copies + 1)
                        where[number] = (len(self.files), len(written))
                        written.append(page)
                    else:
                        duplicate += 1
                        where[number] = (len(self.files), first + behind if behind < copies else first)
                else:
                    seen[page] = (len(written), 1)
                    where[number] = (len(self.files), len(written))
                    written.append(page)
        file = new_file()
        views = [mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) if self.files[i] else b""
                 for i, f in enumerate(self.open)] if compare else []
        got = image.write(self.ram, file.fileno(), self.runs, views, len(self.files))
        file.seek(0)
        content = file.read()
        assert content == b"".join(written)
        assert got[3:] == (zero, same, duplicate) and got.pages == len(written)
        assert got.runs == collapse(where)
        pagefile.check(file.fileno(), got.pages, got.digests)
        self.open.append(file)
        self.files.append(content)
        self.runs = got.runs
        assert sum(map(sum, self.ram.take_dirty())) == len(self.dirty)
        self.dirty = set()
        self.snapshots.append((dict(self.pages), got.runs))
        self.base = self.snapshots[-1]

    def stored(self, where):
        file, page = where
        return self.files[file][page * PAGE : (page + 1) * PAGE]

    def restore(self, index, anew):
        if anew:
            self.ram = new_ram()
        pages, self.runs = self.snapshots[index % len(self.snapshots)]
        image.restore(self.ram, self.runs, [file.fileno() for file in self.open])
        self.pages, self.dirty = dict(pages), set()
        self.base = pages, self.runs

    def put_back(self):
        pages, runs = self.base
        image.put_back(self.ram, runs, [file.fileno() for file in self.open])
        self.pages, self.dirty = dict(pages), set()

    def compare(self):
        for gpa, count, _ in SLOTS:
            content = self.ram.read(gpa, count * PAGE)
            for i in range(count):
                assert content[i * PAGE : (i + 1) * PAGE] == self.pages.get(gpa // PAGE + i, bytes(PAGE)), (gpa, i)
        found = [self.ram.dirty_pages(gpa, count * PAGE) for gpa, count, _ in SLOTS]
        assert {gpa // PAGE for slot in found for gpa in slot} == self.dirty
        for file, content in zip(self.open, self.files, strict=True):
            file.seek(0)
            assert file.read() == content


PLACES = [gpa // PAGE + i for gpa, pages, rom in SLOTS if not rom for i in range(pages)]


def room(number):
    """How many pages from there to the end of the slot."""
    return next(gpa // PAGE + n - number for gpa, n, _ in SLOTS if gpa // PAGE <= number < gpa // PAGE + n)


STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(PLACES), st.lists(st.integers(0, 5), min_size=1, max_size=40)),
    st.tuples(st.just("number"), st.sampled_from(PLACES), st.integers(1, 300), st.integers(1, 1000)),
    st.tuples(st.just("discard"), st.sampled_from(PLACES), st.integers(1, 60)),
    st.tuples(st.just("snapshot"), st.booleans()),
    st.tuples(st.just("fail")),
    st.tuples(st.just("put back")),
    st.tuples(st.just("restore"), st.integers(0, 10), st.booleans()),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(STEPS, max_size=25))
def test_like_the_model(steps):
    model = Model()
    for what, *values in [*steps, ("snapshot", True), ("restore", len(steps), True)]:
        if what == "write":
            model.write(values[0], values[1][: room(values[0])])
        elif what == "number":
            model.write(values[0], range(values[2], values[2] + min(values[1], room(values[0]))))
        elif what == "discard":
            model.discard(values[0], min(values[1], room(values[0])))
        elif what == "snapshot":
            model.snapshot(values[0])
        elif what == "fail":
            model.ram.put_back_dirty(model.ram.take_dirty())
        elif what == "put back":
            model.put_back()
        elif model.snapshots:
            model.restore(*values)
        model.pages = {number: page for number, page in model.pages.items() if page != bytes(PAGE)}
        model.compare()


def written(pages=600, distinct=True):
    """A file with as many pages, its runs, and what was in memory."""
    ram = Ram()
    ram.add(0, pages * PAGE)
    content = b"".join(page_of(i + 1) for i in range(pages))
    ram.write(0, content)
    file = new_file()
    return file, image.write(ram, file.fileno()), content


def run(*values):
    return image.RUN.pack(*values)


def test_pages_that_differ_in_one_bit_are_different():
    ram = Ram()
    ram.add(0, 4097 * PAGE)
    base = random.Random(1).randbytes(PAGE)
    pages = [base]
    for bit in range(0, PAGE * 8, 8):
        page = bytearray(base)
        page[bit // 8] ^= 1 << bit // 8 % 8
        pages.append(bytes(page))
    ram.write(0, b"".join(pages))
    file = new_file()
    got = image.write(ram, file.fileno())
    assert (got.pages, got.duplicate) == (4097, 0)
    assert got.runs == run(0, 4097, 0, 0)


def test_a_page_that_fills_a_stretch_makes_few_runs():
    """It is in the file some times, instead of being mapped once for each of its places."""
    ram = Ram()
    ram.add(0, 4 << 20)
    page = bytes(range(256)) * 16
    for first, count in ((3, 1), (10, 300), (400, 2), (500, 64), (700, 65)):
        ram.write(first * PAGE, page * count)
    ram.write(5 * PAGE, page_of(1))  # behind the first of them in the file
    file = new_file()
    got = image.write(ram, file.fileno())
    file.seek(0)
    assert file.read() == page + page_of(1) + page * COPIES and got.duplicate == 433 - got.pages
    assert [each[:2] for each in image.RUN.iter_unpack(got.runs)] == [
        (3, 1), (5, 1), (10, 1), *((11 + COPIES * i, min(COPIES, 299 - COPIES * i)) for i in range(5)),
        (400, 2), (500, 64), (700, 64), (764, 1),
    ]  # fmt: skip
    other = Ram()
    other.add(0, 4 << 20)
    image.restore(other, got.runs, [file.fileno()])
    assert other.read(0, 4 << 20) == ram.read(0, 4 << 20)


def test_a_run_ends_with_its_slot():
    ram = new_ram()
    ram.write(HIGH + 298 * PAGE, page_of(1) + page_of(2))
    ram.write(HIGH + 300 * PAGE, page_of(3))
    first = HIGH // PAGE + 298
    file = new_file()
    got = image.write(ram, file.fileno())
    assert got.runs == run(first, 2, 0, 0) + run(first + 2, 1, 0, 2)
    again = new_ram()
    image.restore(again, got.runs, [file.fileno()])
    assert again.read(HIGH + 298 * PAGE, 2 * PAGE) == page_of(1) + page_of(2)
    assert again.read(HIGH + 300 * PAGE, PAGE) == page_of(3)


def test_forged_collisions():
    """Pages with the same hash: flipping a word's highest bit changes its lane by plus or minus 2**30 * PRIME_1 after
    the round, as the seed has it, and the lane's next word can take that back. Of three pages two collide, whatever the
    seed is, and of what is made of many such words whole crowds."""
    back = (1 << 30) * 0x9E3779B185EBCA87 * pow(0xC2B2AE3D27D4EB4F, -1, 1 << 64)
    pages = []
    for choices in itertools.product((None, back, -back), repeat=7):
        words = list(range(1, 513))
        for i, change in enumerate(choices):
            if change is not None:
                words[8 * i] ^= 1 << 63
                words[8 * i + 4] = (words[8 * i + 4] + change) % (1 << 64)
        pages.append(struct.pack("<512Q", *words))
    assert len(set(pages)) == 3**7
    ram = Ram()
    ram.add(0, 3**7 * PAGE)
    ram.write(0, b"".join(pages))
    file = new_file()
    got = image.write(ram, file.fileno())
    assert (got.pages, got.runs) == (3**7, run(0, 3**7, 0, 0))
    file.seek(0)
    assert file.read() == b"".join(pages)


@pytest.mark.parametrize("at", [0, 8, 16, 2048, 4088, 4095])
def test_a_page_with_one_bit_is_not_zero(at):
    ram = Ram()
    ram.add(0, PAGE)
    ram.write(at, b"\x80")
    file = new_file()
    assert image.write(ram, file.fileno()).pages == 1


def test_without_room_it_says_so():
    ram = Ram()
    ram.add(0, 1000 * PAGE)
    ram.write(0, random.Random(1).randbytes(1000 * PAGE))
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        image.write(ram, full.fileno())


def test_a_base_of_the_same_index():
    file, got, _ = written()
    ram = Ram()
    ram.add(0, 600 * PAGE)
    with pytest.raises(MemoryError_, match="there is a file 0 already"):
        image.write(ram, file.fileno(), got.runs, [], 0)


def test_a_base_that_is_too_short_is_not_compared_with():
    file, got, content = written()
    ram = Ram()
    ram.add(0, 600 * PAGE)
    with pytest.raises(MemoryError_, match="behind the end of file 0"):
        image.write(ram, file.fileno(), got.runs, [content[:-1]], 1)


@pytest.mark.parametrize("runs, message", [
    (run(0, 1, 0, 0)[:-1], "in the middle"),
    (run(0, 0, 0, 0), "is empty"),
    (run(0, 41, 0, 0), "doesn't have"),
    (run(39, 2, 0, 0), "doesn't have"),
    (run(1 << 52, 1, 0, 0), "doesn't have"),
    (run((1 << 64) - 1, 2, 0, 0), "doesn't have"),
    (run(0, 0xFFFFFFFF, 0, 0), "doesn't have"),
    (run(HIGH // PAGE + 299, 2, 0, 0), "doesn't have"),          # in two slots
    (run(256, 1, 0, 0), "ROM"),
    (run(0, 2, 0, 0) + run(1, 1, 0, 5), "out of order"),
    (run(5, 1, 0, 0) + run(1, 1, 0, 5), "out of order"),
    (run(0, 1, 1, 0), "file that isn't there"),
    (run(0, 1, 0xFFFFFFFF, 0), "file that isn't there"),
    (run(0, 1, 0, 600), "behind the end"),
    (run(0, 2, 0, 599), "behind the end"),
    (run(0, 2, 0, (1 << 64) - 1), "behind the end"),
    (run(0, 2, 0, 1 << 52), "behind the end"),
])  # fmt: skip
def test_runs_that_can_not_be(runs, message):
    file, _, _ = written()
    ram = new_ram()
    ram.write(0, b"as it was")
    with pytest.raises(MemoryError_, match=message) as e:
        image.restore(ram, runs, [file.fileno()])
    assert "\n" not in str(e.value)
    assert ram.read(0, 9) == b"as it was" and ram.dirty_pages(0, PAGE) == [0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 1), st.integers(0, 700)), max_size=5))
def test_runs_of_any_kind(values):
    file, _, content = written()
    ram = new_ram()
    ram.write(0, b"as it was")
    want, end, right = bytearray(40 * PAGE), 0, True
    for first, count, which, page in values:
        right = right and count > 0 and first >= end and first + count <= 40 and not which and page + count <= 600
        end = first + count
        if right:
            want[first * PAGE : end * PAGE] = content[page * PAGE : (page + count) * PAGE]
    runs = b"".join(run(*value) for value in values)
    if right:
        image.restore(ram, runs, [file.fileno()])
        assert ram.read(0, 40 * PAGE) == want
    else:
        with pytest.raises(MemoryError_):
            image.restore(ram, runs, [file.fileno()])
        assert ram.read(0, 9) == b"as it was"


def test_a_file_that_has_become_shorter_or_is_none():
    file, got, _ = written()
    ram = Ram()
    ram.add(0, 600 * PAGE)
    os.truncate(file.fileno(), 599 * PAGE)
    with pytest.raises(MemoryError_, match="behind the end of file 0"):
        image.restore(ram, got.runs, [file.fileno()])
    reader, writer = os.pipe()
    with pytest.raises(MemoryError_, match="behind the end of file 0"):
        image.restore(ram, got.runs, [reader])
    os.close(reader)
    os.close(writer)
    with pytest.raises(MemoryError_, match="file 0 of the memory image can't be read: Bad file descriptor"):
        image.restore(ram, got.runs, [writer])


def test_what_can_not_be_put_back():
    ram, file = new_ram(), new_file()
    ram.write(0, page_of(1) + page_of(2))
    runs = image.write(ram, file.fileno()).runs
    ram.take_dirty()
    ram.write(PAGE, page_of(3))
    with pytest.raises(MemoryError_, match="is of a file that isn't there"):
        image.put_back(ram, runs, [])
    assert ram.read(0, 2 * PAGE) == page_of(1) + page_of(3) and ram.dirty_pages(0, 2 * PAGE) == [PAGE]
    with (
        open(f"/proc/self/fd/{file.fileno()}", "r+b", buffering=0, opener=write_only) as other,
        pytest.raises(MemoryError_, match="can't be put back: Bad file descriptor"),
    ):
        image.put_back(ram, runs, [other.fileno()])
    image.put_back(ram, runs, [file.fileno()])
    assert ram.read(0, 2 * PAGE) == page_of(1) + page_of(2) and not ram.dirty_pages(0, 2 * PAGE)


def write_only(path, flags):
    return os.open(path, os.O_WRONLY)


def test_files_that_can_not_be_mapped_leave_zeros():
    """Of two the second may only be written: the first is there already."""
    file, got, _ = written(20)
    with tempfile.NamedTemporaryFile() as second:
        second.truncate(20 * PAGE)
        blind = os.open(second.name, os.O_WRONLY)
        ram = Ram()
        ram.add(0, 64 * PAGE)
        ram.write(0, b"old")
        with pytest.raises(MemoryError_, match="can't be restored: Permission denied"):
            image.restore(ram, got.runs + run(30, 20, 1, 0), [file.fileno(), blind])
        os.close(blind)
    assert ram.read(0, 64 * PAGE) == bytes(64 * PAGE)
    ram.write(0, b"new")
    assert ram.read(0, 4) == b"new\0"


def test_machines_keep_to_themselves():
    file, got, content = written()
    first, second = Ram(), Ram()
    for ram in (first, second):
        ram.add(0, 600 * PAGE)
        image.restore(ram, got.runs, [file.fileno()])
    first.write(5 * PAGE, b"mine")
    first.discard(100 * PAGE, 200 * PAGE)
    first.discard(400 * PAGE, 2 * PAGE)
    assert second.read(0, 600 * PAGE) == content
    want = bytearray(content)
    want[5 * PAGE : 5 * PAGE + 4] = b"mine"
    for begin, end in ((100, 300), (400, 402)):
        want[begin * PAGE : end * PAGE] = bytes((end - begin) * PAGE)
    assert first.read(0, 600 * PAGE) == want
    third = Ram()
    third.add(0, 600 * PAGE)
    image.restore(third, got.runs, [file.fileno()])
    file.close()
    assert third.read(0, 600 * PAGE) == content


def maps():
    """[(begin, end, permissions), ...] of this process."""
    out = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            where, permissions = line.split()[:2]
            begin, end = (int(part, 16) for part in where.split("-"))
            out.append((begin, end, permissions))
    return out


def test_guards_stay():
    file, got, _ = written()
    guards = {line for line in maps() if line[2] == "---p"}
    ram = Ram()
    ram.add(0, 600 * PAGE)
    added = {line for line in maps() if line[2] == "---p"} - guards
    assert added
    image.restore(ram, got.runs, [file.fileno()])
    ram.discard(0, 600 * PAGE)
    assert added <= set(maps())


def sparse(pages):
    """A file whose pages are zero but for a mark in every thousandth."""
    file = new_file()
    file.truncate(pages * PAGE)
    for page in range(0, pages, 1000):
        os.pwrite(file.fileno(), page_of(page + 1), page * PAGE)
    return file


@pytest.mark.parametrize("spread", [1, 3])  # in the file: one behind another, or apart
def test_many_short_runs_make_a_bounded_number_of_mappings(spread):
    n = 40_000
    file = new_file()
    file.truncate(spread * n * PAGE)
    for i in range(n):
        os.pwrite(file.fileno(), struct.pack("<Q", i + 1), spread * i * PAGE)
    runs = bytearray(b"".join(run(2 * i, 1, 0, spread * i) for i in range(n)))
    runs[-24:] = run(2 * n, 9, 0, 0)           # the longest, and so mapped, is last
    ram = Ram()
    ram.add(0, (2 * n + 10) * PAGE)
    before = len(maps())
    image.restore(ram, bytes(runs), [file.fileno()])
    assert len(maps()) < before + 2 * 8192 + 50
    content = ram.view(0, (2 * n + 10) * PAGE)
    for i in range(n - 1):
        assert content[2 * i * PAGE : 2 * i * PAGE + 8] == struct.pack("<Q", i + 1), i
        assert not any(content[(2 * i + 1) * PAGE : (2 * i + 1) * PAGE + 8])
    assert content[2 * n * PAGE : 2 * n * PAGE + 8] == struct.pack("<Q", 1)
    assert not any(map(sum, ram.take_dirty()))


@pytest.mark.parametrize("length, step", [(1, 2), (16, 32)])
def test_many_discards_make_a_bounded_number_of_mappings(length, step):
    pages = 9000 * step
    file = sparse(pages)
    ram = Ram()
    ram.add(0, pages * PAGE)
    image.restore(ram, run(0, pages, 0, 0), [file.fileno()])
    before = len(maps())
    for page in range(0, pages, step):
        assert ram.discard(page * PAGE, length * PAGE)
    assert len(maps()) < before + (50 if length < 16 else 2 * 8192 + 50)
    content = ram.view(0, pages * PAGE)
    for page in range(0, pages, 1000):
        want = bytes(8) if page % step < length else struct.pack("<Q", page + 1)
        assert content[page * PAGE : page * PAGE + 8] == want, page


def test_a_discard_gives_memory_back():
    """Of what is mapped from a file and written since, and of what isn't mapped."""
    file, got, _ = written(2000)
    ram = Ram()
    ram.add(0, 4000 * PAGE)
    image.restore(ram, got.runs, [file.fileno()])
    ram.write(0, b"x" * 4000 * PAGE)
    full = resident()
    ram.discard(0, 4000 * PAGE)
    assert resident() < full - 3500
    assert ram.read(0, 4000 * PAGE) == bytes(4000 * PAGE)


def resident():
    """Pages of this process that are anonymous."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) // 4 for line in lines if line.startswith("RssAnon:"))


def test_a_forked_and_a_confined_process_can():
    code = """
import os, tempfile
from hostel.base.linux import prctl, seccomp
from hostel.memory import image, pagefile
from hostel.memory.ram import Ram
ram = Ram()
ram.add(0, 4000 * 4096)
content = os.urandom(2000 * 4096)
ram.write(0, content)
file, second = tempfile.TemporaryFile(buffering=0), tempfile.TemporaryFile(buffering=0)
child = os.fork()
if not child:
    prctl.set_no_new_privs()
    seccomp.restrict()
    written = image.write(ram, file.fileno())
    assert written.pages == 2000
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
prctl.set_no_new_privs()
seccomp.restrict()
written = image.write(ram, second.fileno())
again = Ram()
again.add(0, 4000 * 4096)
image.restore(again, written.runs, [file.fileno()])
assert again.discard(4096, 20 * 4096)
assert again.read(0, 2000 * 4096) == content[:4096] + bytes(20 * 4096) + content[21 * 4096 :]
pagefile.check(file.fileno(), written.pages, written.digests)
digests = pagefile.punched(file.fileno(), written.pages, written.digests, [(7, 1000)])
pagefile.punch(file.fileno(), written.pages, [(7, 1000)])
pagefile.check(file.fileno(), written.pages, digests)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_is_referenced():
    runs = run(0, 5, 0, 10) + run(5, 5, 1, 0) + run(20, 3, 0, 12) + run(30, 1, 0, 15) + run(40, 2, 0, 100)
    assert image.files(runs) == {0, 1}
    assert image.referenced(runs, 0) == [(10, 6), (100, 2)]
    assert image.referenced(runs, 1) == [(0, 5)]
    assert image.referenced(runs, 2) == []


def test_files_get_other_numbers():
    runs = run(0, 5, 0, 10) + run(5, 5, 1, 0) + run(20, 3, 7, 12)
    assert image.remap_files(runs, {0: 7, 1: 0, 7: 1}) == run(0, 5, 7, 10) + run(5, 5, 0, 0) + run(20, 3, 1, 12)
    assert runs == run(0, 5, 0, 10) + run(5, 5, 1, 0) + run(20, 3, 7, 12)
    with pytest.raises(MemoryError_, match="no file 7"):
        image.remap_files(runs, {0: 0, 1: 1})
    assert image.remap_files(b"", {}) == b""


def test_a_chain_can_be_punched():
    """What only the first snapshot had goes; the second is restored from both files as before."""
    file, got, content = written(900)
    ram = Ram()
    ram.add(0, 900 * PAGE)
    image.restore(ram, got.runs, [file.fileno()])
    for page in itertools.chain(range(100, 400), range(777, 780)):
        ram.write(page * PAGE, page_of(page + 5000))
    second = new_file()
    view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    later = image.write(ram, second.fileno(), got.runs, [view], 1)
    del ram
    keep = image.referenced(later.runs, 0)
    assert keep == [(0, 100), (400, 377), (780, 120)]
    digests = pagefile.punched(file.fileno(), got.pages, got.digests, keep)
    pagefile.punch(file.fileno(), got.pages, keep)
    pagefile.check(file.fileno(), got.pages, digests)
    pagefile.check(file.fileno(), got.pages, digests, keep)
    again = Ram()
    again.add(0, 900 * PAGE)
    image.restore(again, later.runs, [file.fileno(), second.fileno()])
    want = bytearray(content)
    for page in itertools.chain(range(100, 400), range(777, 780)):
        want[page * PAGE : (page + 1) * PAGE] = page_of(page + 5000)
    assert again.read(0, 900 * PAGE) == want
