"""Where hostel's time goes while a program of a guest works: perf(1) on the worker, with names for the guest's code
(``hostel run --perf-map``)."""

import collections
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SHOWN = 12                    # symbols that are shown of a profile; its file has all


class Profile:
    """Of one machine; ``folder`` gets a file for each program."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._records: list[Path] = []
        self._maps: set[Path] = set()

    @contextlib.contextmanager
    def watch(self, pid: int, name: str) -> Iterator[None]:
        """Samples of the process ``pid``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        record = self._folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:60]}.perf"
        self._records.append(record)
        self._maps.add(Path(f"/tmp/perf-{pid}.map"))
        # A virtual machine's host often has no counters; the clock is everywhere.
        arguments = ["-q", "-e", "cpu-clock", "-F", "997", "-p", str(pid), "-o", str(record)]
        perf = subprocess.Popen(["perf", "record", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            yield
        finally:
            perf.send_signal(signal.SIGINT)
            if said := perf.communicate()[1].decode().strip():
                print(f"bench: perf: {said[-200:]}", file=sys.stderr)

    def tell(self) -> None:
        """Print what was seen. The machine has ended: only then has all code its name."""
        for record in self._records:
            report = record.with_suffix(".txt")
            with report.open("wb") as file:
                arguments = ["-i", str(record), "--stdio", "--sort", "symbol", "--percent-limit", "0.01"]
                subprocess.run(["perf", "report", *arguments], stdout=file, stderr=subprocess.DEVNULL)
            record.unlink(missing_ok=True)
            lines = list(symbols(report.read_text()))
            print(f"\n{record.stem}:", file=sys.stderr)
            for place, share in places(lines).most_common():
                print(f"  {share:6.2f} %  {place}", file=sys.stderr)
            print("of which", file=sys.stderr)
            for share, symbol, _ in sorted(lines, reverse=True)[:SHOWN]:
                print(f"  {share:6.2f} %  {symbol}", file=sys.stderr)
            print(f"  (more in {report})", file=sys.stderr)
        self._records.clear()
        for path in self._maps:
            path.unlink(missing_ok=True)
        self._maps.clear()


def symbols(report: str) -> Iterator[tuple[float, str, bool]]:
    """Percent, name, and whether it is the host kernel's, of each line of perf's report."""
    for line in report.splitlines():
        if match := re.match(r"\s+([0-9.]+)%\s+\[(.)\] (.*?)(?:\s+-)*\s*$", line):
            yield float(match[1]), match[3], match[2] == "k"


def places(lines: list[tuple[float, str, bool]]) -> collections.Counter[str]:
    """The same, added up by what part of hostel it is."""
    total: collections.Counter[str] = collections.Counter()
    for share, symbol, is_kernel in lines:
        if is_kernel:
            place = "the host's kernel"
        elif code := re.search(r" (user|kernel)\d+ \d+B( cold)?$", symbol):
            place = f"translated code of the guest's {'programs' if code[1] == 'user' else 'kernel'}{code[2] or ''}"
        elif symbol.startswith("hostel_"):
            place = "stubs"
        elif module := re.search(r"6hostel_\d[a-z]+(?:_2bt)?_\d+([a-z]+)_", symbol):
            place = f"hostel's module {module[1]}"
        else:
            place = "Python, libraries"
        total[place] += share
    return total
