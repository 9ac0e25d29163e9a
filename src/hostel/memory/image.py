"""Memory images: guest memory in files.

**A page file** (memory/pagefile) holds pages of 4 KiB, one behind another, and nothing else: no page twice unless it
fills a stretch of memory, none that is zero. So it can be mapped over guest memory, privately: pages come when they are
touched, and machines restored from the same file share the host's cache of it.

**Runs** say where the pages are in guest memory: little-endian records of first guest page (address >> 12), count,
index of the file, first page there (``"<QIIQ"``), in order of guest pages, none overlapping another, each within one
slot and as long as it can be. Pages in no run are zero.

**Snapshots stand on one another.** ``write`` puts into a new file what is neither zero nor in a file already: pages
that aren't dirty are where the base's runs say, dirty ones are compared with the base's page at the same address and
with what was written so far. The runs it gives are of all memory, with the base's files and the new one.

Who writes holds the machine still, or is a forked child. Files must stay as they are while they are mapped: a page that
is punched out reads as zero in machines that haven't written it, and behind the end of a file is SIGBUS.

Limits: ``restore`` makes ``MAX_MAPPED`` mappings of files at most and reads what is left; a process has 65,530
(vm.max_map_count), and each may leave a piece of the memory around it. ``write`` needs 1 MiB, 24 bytes a run and up to
64 bytes a dirty page.
"""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import cython
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
from cython.cimports.hostel.base.aio import preadv
from cython.cimports.hostel.memory.digest import page_hash
from cython.cimports.hostel.memory.ram import Ram, Slot, map
from cython.cimports.libc.errno import EINTR, EIO, ENOMEM
from cython.cimports.libc.errno import errno as c_errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc, realloc
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.posix.mman import MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE

from hostel.base.errors import MemoryError_
from hostel.memory.digest import digest
from hostel.memory.pagefile import PAGE, PIECE, merged

RUN = struct.Struct("<QIIQ")
MAX_MAPPED = cython.declare(uint64_t, 8192)
PIECE_PAGES = cython.declare(uint64_t, PIECE)
# Where pages with the same hash are looked for. A hostile guest may forge any number of them: past this its pages are
# stored twice, instead of compared with one another for hours.
MAX_PROBES = cython.declare(uint64_t, 64)
# A page that fills a stretch of memory (as an unused part of Linux's array of struct page does) is in the file so many
# times: a mapping for each page of the stretch would take ten times as long to make as all the others.
COPIES = cython.declare(uint32_t, 64)
# Dirty pages that are to be zero again go back to the host where so many are beside one another.
LEAST_EMPTIED = cython.declare(uint64_t, 16)


class Written(NamedTuple):
    """What ``write`` has made."""

    runs: bytes
    pages: int                    # in the new file
    digests: bytes                # of its pieces
    zero: int                     # dirty pages that are zero,
    same: int                     # that are as in the base,
    duplicate: int                # and as another one


def write(
    ram: Ram, fd: cython.int, base_runs: bytes = b"", base_views: Sequence = (), file_index: int = 0
) -> Written:
    """Write dirty memory to the empty file ``fd``, number ``file_index`` of those that runs speak of.

    ``base_runs`` are those of the snapshot that ``ram`` was restored from, or that was taken when nothing was dirty
    last; ``base_views`` its files, mapped, by index: where one is missing or None, pages aren't compared with it.
    Raises OSError where the host can't write, MemoryError_ where the base makes no sense."""
    return _Writer(ram, fd, base_runs, base_views, file_index).write()


@cython.cclass
class _Writer:
    def __cinit__(self, ram: Ram, fd: cython.int, base_runs: bytes, base_views, file_index: int):
        self.ram, self.fd, self.file = ram, fd, file_index
        self.views = [None if view is None else memoryview(view).cast("B") for view in base_views]
        self.base_bytes = base_runs
        self.base = cython.cast(cython.pointer(Run), cython.cast(cython.p_char, base_runs))
        self.base_count = len(base_runs) // RUN.size
        self.piece = bytearray(PIECE * PAGE)
        self.buffer = _at(self.piece)
        self.digests = []
        self.seed = int.from_bytes(os.urandom(8), "little")

    def __init__(self, ram: Ram, fd: cython.int, base_runs: bytes, base_views, file_index: int):
        i: cython.int
        dirty: uint64_t = 0
        pages = [None if view is None else len(view) // PAGE for view in self.views]
        if file_index in files(base_runs):
            raise MemoryError_(f"memory image: there is a file {file_index} already")
        _validate(ram, base_runs, pages, False)
        self.mapped_count = len(self.views)
        self.mapped = cython.cast(
            cython.pointer(cython.pointer(cython.const[uint8_t])),
            calloc(self.mapped_count + 1, cython.sizeof(cython.p_void)),
        )
        for i in range(ram.count):
            dirty += _dirty_pages(cython.address(ram.slots[i]))
        size: uint64_t = 2
        while size < 2 * dirty:
            size *= 2
        self.seen_mask = size - 1
        self.seen = cython.cast(cython.pointer(Seen), calloc(size, cython.sizeof(Seen)))
        if self.mapped == cython.NULL or self.seen == cython.NULL:
            raise MemoryError()
        for i in range(len(self.views)):
            if self.views[i]:
                self.mapped[i] = _at(self.views[i])

    def __dealloc__(self):
        free(self.mapped)
        free(self.seen)
        free(self.runs.at)

    def write(self) -> Written:
        i: cython.int
        page: uint64_t
        for _, i in sorted((region[0], i) for i, region in enumerate(self.ram.regions())):
            slot: cython.pointer(Slot) = cython.address(self.ram.slots[i])
            if slot.readonly:
                continue
            self.runs.apart = True
            page = 0
            while page < slot.size >> 12:
                with cython.nogil:
                    page = self.scan(slot, page)
                if self.no_memory:
                    raise MemoryError()
                if self.filled == PIECE_PAGES:
                    self.end_piece()
        if self.filled:
            self.end_piece()
        runs = PyBytes_FromStringAndSize(cython.cast(cython.p_char, self.runs.at), self.runs.count * cython.sizeof(Run))
        return Written(runs, self.pages, b"".join(self.digests), self.zero, self.same, self.duplicate)

    def scan(self, slot, page):
        """Go on from ``page`` until the buffer is full; where that is."""
        pages: uint64_t = slot.size >> 12
        number: uint64_t = slot.gpa >> 12
        n: uint64_t
        while page < pages and not self.no_memory:
            n = _clean(slot.dirty + page, pages - page)
            if n:
                self.take_over(number + page, n)
            elif self.filled == PIECE_PAGES:
                break
            else:
                self.add_page(number + page, slot.host + (page << 12))
                n = 1
            page += n
        return page

    def take_over(self, first, count):
        """These guest pages are where the base has them."""
        end: uint64_t = first + count
        while self.base_at < self.base_count:
            run: cython.pointer(Run) = self.base + self.base_at
            if run.first >= end:
                return
            begin: uint64_t = max(first, run.first)
            stop: uint64_t = min(end, run.first + run.count)
            if begin < stop:
                self.add_run(begin, stop - begin, run.file, run.page + (begin - run.first))
            if run.first + run.count > end:
                return
            self.base_at += 1

    def add_page(self, number, host):
        word: cython.pointer(cython.const[uint64_t]) = cython.cast(cython.pointer(cython.const[uint64_t]), host)
        if word[0] == 0 and memcmp(host, host + 8, 4096 - 8) == 0:  # each word is as the one before it
            self.zero += 1
            return
        run: cython.pointer(Run) = self.base + self.base_at
        while self.base_at < self.base_count and run.first + run.count <= number:
            self.base_at += 1
            run += 1
        if self.base_at < self.base_count:
            page: uint64_t = run.page + (number - run.first)
            if run.first <= number and run.file < self.mapped_count and self.mapped[run.file] != cython.NULL:
                if memcmp(host, self.mapped[run.file] + (page << 12), 4096) == 0:
                    self.same += 1
                    self.add_run(number, 1, run.file, page)
                    return
        key: uint64_t = page_hash(word, self.seed)
        tag: uint32_t = cython.cast(uint32_t, key >> 32)
        probe: uint64_t
        for probe in range(MAX_PROBES):
            seen: cython.pointer(Seen) = self.seen + ((key + probe) & self.seen_mask)
            if seen.host == cython.NULL:
                seen.host, seen.tag, seen.page, seen.copies = host, tag, cython.cast(uint32_t, self.pages), 1
                break
            if seen.tag == tag and memcmp(host, seen.host, 4096) == 0:
                if not self.add_copy(seen, number, host):
                    self.duplicate += 1
                return
        self.store(number, host)

    def add_copy(self, seen, number, host):
        """This guest page is as one that was ``seen``; True where the file has got it once more."""
        page: uint64_t = seen.page
        if self.runs.count and not self.runs.apart:
            last: cython.pointer(Run) = self.runs.at + (self.runs.count - 1)
            # How many guest pages before it are the same, as far as a run goes.
            same: uint64_t = last.page + last.count - page
            if last.first + last.count == number and last.file == self.file and 0 < same <= seen.copies:
                if same < seen.copies:
                    page += same
                elif seen.copies < COPIES:
                    if page + same != self.pages:  # others are behind it by now
                        seen.page, seen.copies = cython.cast(uint32_t, self.pages), 0
                    seen.copies += 1
                    self.store(number, host)
                    return True
        self.add_run(number, 1, self.file, page)
        return False

    def store(self, number, host):
        memcpy(self.buffer + (self.filled << 12), host, 4096)
        self.add_run(number, 1, self.file, self.pages)
        self.filled += 1
        self.pages += 1

    def add_run(self, first, count, file, page):
        runs: cython.pointer(RunList) = cython.address(self.runs)
        if runs.count and not runs.apart:
            last: cython.pointer(Run) = runs.at + (runs.count - 1)
            if last.first + last.count == first and last.file == file and last.page + last.count == page:
                last.count += cython.cast(uint32_t, count)
                return
        if runs.count == runs.room:
            room: cython.size_t = 2 * runs.room + 256
            grown: cython.p_void = realloc(runs.at, room * cython.sizeof(Run))
            if grown == cython.NULL:
                self.no_memory = True
                return
            runs.at, runs.room = cython.cast(cython.pointer(Run), grown), room
        new: cython.pointer(Run) = runs.at + runs.count
        new.first, new.count, new.file, new.page = first, cython.cast(uint32_t, count), file, page
        runs.count += 1
        runs.apart = False

    def end_piece(self):
        length: cython.size_t = self.filled << 12
        # Not in a second thread: on two cores that was no faster, and this may be a forked child.
        self.digests.append(digest(memoryview(self.piece)[:length]))
        with cython.nogil:
            failed: cython.int = self.put(self.buffer, length)
            # The disk begins now: whoever waits for the whole file (fsync) waits for the rest only.
            sync_file_range(self.fd, (self.pages << 12) - length, length, SYNC_FILE_RANGE_WRITE)
        if failed:
            raise OSError(failed, os.strerror(failed))
        self.filled = 0

    def put(self, data, length):
        """An errno, or 0."""
        done: cython.Py_ssize_t
        while length:
            done = write_fd(self.fd, data, length)
            if done > 0:
                data += done
                length -= done
            elif done == 0:
                return EIO
            elif c_errno != EINTR:
                return c_errno
        return 0


def restore(ram: Ram, runs: bytes, fds: Sequence[int]) -> None:
    """Make ``ram`` what ``runs`` say, all of it but ROM: nothing is dirty then. ``fds`` are the files, by index, and
    may be closed afterwards. No vCPU and no device may run.

    Raises MemoryError_: before anything has changed where runs and files can't be right, else with memory that is zero.
    """
    _fill(ram, runs, fds, False)


def put_back(ram: Ram, runs: bytes, fds: Sequence[int]) -> None:
    """The same where only dirty pages differ from what ``runs`` say, since ``ram`` was restored from these or they were
    taken of it: only those change. Raises MemoryError_, behind which memory is neither the one nor the other."""
    _fill(ram, runs, fds, True)
    ram.take_dirty()


@cython.cfunc
def _fill(ram: Ram, runs: bytes, fds: Sequence, dirty_only: cython.bint):
    i: cython.int
    at: cython.size_t
    failed: cython.int = 0
    count: cython.size_t = len(runs) // RUN.size
    _validate(ram, runs, [_file_pages(i, fd) for i, fd in enumerate(fds)], True)
    given: cython.pointer(Run) = cython.cast(cython.pointer(Run), cython.cast(cython.p_char, runs))
    merged: cython.pointer(Run) = cython.cast(cython.pointer(Run), malloc(count * cython.sizeof(Run) + 1))
    descriptors: cython.pointer(cython.int) = cython.cast(
        cython.pointer(cython.int), malloc((len(fds) + 1) * cython.sizeof(cython.int))
    )
    reading: cython.pointer(Reading) = cython.cast(cython.pointer(Reading), malloc(cython.sizeof(Reading)))
    try:
        if merged == cython.NULL or descriptors == cython.NULL or reading == cython.NULL:
            raise MemoryError()
        reading.count = 0
        for i in range(len(fds)):
            descriptors[i] = fds[i]
        if dirty_only:
            with cython.nogil:
                for i in range(ram.count):
                    if not ram.slots[i].readonly and not failed:
                        failed = _put_back(ram, cython.address(ram.slots[i]), given, count, descriptors, reading)
        else:
            for at in range(count):
                ram.expect_files(ram.find(given[at].first << 12))
            with cython.nogil:
                failed = 0 if ram.reset() else EIO
                if not failed:
                    failed = _map(ram, merged, _merge(ram, given, count, merged), descriptors, reading)
            if failed:
                ram.reset()
        if failed:
            what = "put back" if dirty_only else "restored"
            why = "a file is shorter than it was" if failed < 0 else os.strerror(failed)
            raise MemoryError_(f"memory can't be {what}: {why}")
    finally:
        free(merged)
        free(descriptors)
        free(reading)


def files(runs: bytes) -> set[int]:
    """The indexes of the files that they use."""
    _whole(runs)
    return {file for _, _, file, _ in RUN.iter_unpack(runs)}


def referenced(runs: bytes, file_index: int) -> list[tuple[int, int]]:
    """``[(first page, count), ...]`` of the file's pages that they use: in order, apart, as long as can be."""
    _whole(runs)
    return merged(((page, count) for _, count, file, page in RUN.iter_unpack(runs) if file == file_index), 1 << 64)


def remap_files(runs: bytes, table: dict[int, int]) -> bytes:
    """The runs with other indexes: ``table`` has the new one for each. Raises MemoryError_ where it doesn't."""
    i: cython.size_t
    _whole(runs)
    new = bytes(bytearray(runs))  # one of our own
    out: cython.pointer(Run) = cython.cast(cython.pointer(Run), cython.cast(cython.p_char, new))
    for i in range(len(runs) // RUN.size):
        file = table.get(out[i].file)
        if file is None:
            raise MemoryError_(f"memory image: there is no file {out[i].file}")
        out[i].file = file
    return new


@cython.cfunc
def _validate(ram: Ram, runs: bytes, pages: list, known: cython.bint):
    """Raise MemoryError_ unless ``runs`` are about this memory and files of ``pages`` each; None: of any length. Files
    that aren't there are an error where all must be ``known``."""
    i: cython.size_t
    next_page: uint64_t = 0
    _whole(runs)
    run: cython.pointer(Run) = cython.cast(cython.pointer(Run), cython.cast(cython.p_char, runs))
    for i in range(len(runs) // RUN.size):
        what = None
        slot: cython.pointer(Slot) = cython.NULL
        if run.first >> 52 == 0:
            slot = ram.find(run.first << 12)
        if not run.count:
            what = "is empty"
        elif slot == cython.NULL or run.count > (slot.size - ((run.first << 12) - slot.gpa)) >> 12:
            what = "is of memory that this machine doesn't have"
        elif slot.readonly:
            what = "is of ROM"
        elif run.first < next_page:
            what = "is out of order or overlaps the one before it"
        elif run.file >= len(pages):
            if known:
                what = "is of a file that isn't there"
        elif pages[run.file] is not None:
            size: uint64_t = pages[run.file]
            if run.page >= size or run.count > size - run.page:
                what = f"is behind the end of file {run.file}"
        if what is not None:
            raise MemoryError_(f"the memory image is damaged: run {i} (guest page {run.first:#x}) {what}")
        next_page = run.first + run.count
        run += 1


def _whole(runs: bytes) -> None:
    if len(runs) % RUN.size:
        raise MemoryError_("the memory image is damaged: its list of runs ends in the middle of one")


def _file_pages(index: int, fd: int) -> int:
    try:
        return os.fstat(fd).st_size // PAGE
    except OSError as e:
        raise MemoryError_(f"file {index} of the memory image can't be read: {e.strerror}") from e


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _merge(
    ram: Ram, run: cython.pointer(Run), count: cython.size_t, out: cython.pointer(Run)
) -> cython.size_t:  # fmt: skip
    """Join runs that could be one; how many there are."""
    i: cython.size_t
    n: cython.size_t = 0
    for i in range(count):
        if n:
            last: cython.pointer(Run) = out + (n - 1)
            if (
                last.first + last.count == run[i].first
                and last.file == run[i].file
                and last.page + last.count == run[i].page
                and ram.find(last.first << 12) == ram.find(run[i].first << 12)
            ):
                last.count += run[i].count
                continue
        out[n] = run[i]
        n += 1
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _map(
    ram: Ram, run: cython.pointer(Run), count: cython.size_t, files: cython.pointer(cython.int),
    reading: cython.pointer(Reading),
) -> cython.int:  # fmt: skip
    """Have the longest runs mapped and the others read. 0, an errno, or -1: a file has ended."""
    i: cython.size_t
    failed: cython.int
    least: uint64_t = _least(run, count)
    spare: uint64_t = MAX_MAPPED - _longer(run, count, least)  # of those that are shorter by one
    for i in range(count):
        slot: cython.pointer(Slot) = ram.find(run[i].first << 12)
        offset: uint64_t = (run[i].first << 12) - slot.gpa
        length: uint64_t = cython.cast(uint64_t, run[i].count) << 12
        if run[i].count >= least or (spare and run[i].count + cython.cast(uint64_t, 1) == least):
            if run[i].count < least:
                spare -= 1
            if map(
                slot.host + offset, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
                files[run[i].file], run[i].page << 12,
            ) != MAP_FAILED:  # fmt: skip
                memset(slot.backed + (offset >> 12), 1, run[i].count)
                continue
            if c_errno != ENOMEM:  # else: the process has as many mappings as it may, and what was there is still
                return c_errno
        failed = _have_read(reading, files, run[i].file, run[i].page, slot.host + offset, run[i].count)
        if failed:
            return failed
    return _read(reading, files)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _have_read(
    reading: cython.pointer(Reading), files: cython.pointer(cython.int), file: uint32_t, page: uint64_t,
    host: cython.pointer(uint8_t), count: uint64_t,
) -> cython.int:  # fmt: skip
    """So many pages of the file, to be read with others that are behind them there. 0, an errno, or -1."""
    failed: cython.int
    if reading.count and (
        reading.count == 1024 or reading.file != file or reading.page + reading.pages != page
    ):
        failed = _read(reading, files)
        if failed:
            return failed
    if not reading.count:
        reading.file, reading.page, reading.pages = file, page, 0
    reading.vector[reading.count].iov_base = host
    reading.vector[reading.count].iov_len = count << 12
    reading.count += 1
    reading.pages += count
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _put_back(
    ram: Ram, slot: cython.pointer(Slot), run: cython.pointer(Run), count: cython.size_t,
    files: cython.pointer(cython.int), reading: cython.pointer(Reading),
) -> cython.int:  # fmt: skip
    """Have the slot's dirty pages be as the runs say, and whoever translated them told. 0, an errno, or -1."""
    first: uint64_t = slot.gpa >> 12
    pages: uint64_t = slot.size >> 12
    page: uint64_t = 0
    at: cython.size_t = 0
    n: uint64_t
    failed: cython.int
    while page < pages:
        n = _clean(slot.dirty + page, pages - page)
        if n:
            page += n
            continue
        host: cython.pointer(uint8_t) = slot.host + (page << 12)
        n = _dirty(slot.dirty + page, pages - page)
        while at < count and run[at].first + run[at].count <= first + page:
            at += 1
        if at < count and run[at].first <= first + page:
            n = min(n, run[at].first + run[at].count - (first + page))
            failed = _have_read(
                reading, files, run[at].file, run[at].page + (first + page - run[at].first), host, n
            )
            if failed:
                return failed
        else:
            if at < count:
                n = min(n, run[at].first - (first + page))
            if n < LEAST_EMPTIED:  # where there is memory, it is needed soon
                memset(host, 0, n << 12)
            elif not ram.empty(slot, page << 12, n << 12):
                return EIO
        page += n
    failed = _read(reading, files)
    page = 0
    while page < pages:
        n = _clean(slot.dirty + page, pages - page)
        if not n:
            n = _dirty(slot.dirty + page, pages - page)
            ram.written(slot.host + (page << 12), n << 12)
        page += n
    return failed


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _longer(run: cython.pointer(Run), count: cython.size_t, least: uint64_t) -> uint64_t:
    """How many are of ``least`` pages or more."""
    i: cython.size_t
    n: uint64_t = 0
    for i in range(count):
        n += run[i].count >= least
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _least(run: cython.pointer(Run), count: cython.size_t) -> uint64_t:
    """The smallest length that no more runs than may be mapped have or exceed."""
    low: uint64_t = 1
    high: uint64_t = cython.cast(uint64_t, 1) << 32
    while low < high:
        middle: uint64_t = (low + high) // 2
        if _longer(run, count, middle) > MAX_MAPPED:
            low = middle + 1
        else:
            high = middle
    return low


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _read(reading: cython.pointer(Reading), files: cython.pointer(cython.int)) -> cython.int:
    """0, an errno, or -1: the file has ended."""
    at: cython.int = 0
    offset: uint64_t = reading.page << 12
    while at < reading.count:
        done: cython.Py_ssize_t = preadv(files[reading.file], reading.vector + at, reading.count - at, offset)
        if done == 0:
            return -1
        if done < 0:
            if c_errno != EINTR:
                return c_errno
            continue
        offset += done
        while at < reading.count and cython.cast(cython.size_t, done) >= reading.vector[at].iov_len:
            done -= reading.vector[at].iov_len
            at += 1
        if done:
            reading.vector[at].iov_base = cython.cast(cython.p_char, reading.vector[at].iov_base) + done
            reading.vector[at].iov_len -= done
    reading.count = 0
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _clean(dirty: cython.pointer(uint8_t), pages: uint64_t) -> uint64_t:
    """How many pages from here on aren't dirty."""
    n: uint64_t = 0
    while n + 8 <= pages and cython.cast(cython.pointer(uint64_t), dirty + n)[0] == 0:
        n += 8
    while n < pages and not dirty[n]:
        n += 1
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _dirty(dirty: cython.pointer(uint8_t), pages: uint64_t) -> uint64_t:
    """How many pages from here on are dirty."""
    n: uint64_t = 0
    while n < pages and dirty[n]:
        n += 1
    return n


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _dirty_pages(slot: cython.pointer(Slot)) -> uint64_t:
    page: uint64_t
    n: uint64_t = 0
    if not slot.readonly:
        for page in range(slot.size >> 12):
            n += slot.dirty[page] != 0
    return n


@cython.cfunc
def _at(buffer) -> cython.pointer(uint8_t):
    """The address of its bytes, for as long as somebody holds it; not of an empty one."""
    view: cython.const[cython.uchar][::1] = buffer
    return cython.cast(cython.pointer(uint8_t), cython.cast(cython.size_t, cython.address(view[0])))
