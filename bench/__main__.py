"""``python -m bench [SUITE]``: run the peers in turn, print the table. Exit status: 0, 1 where a peer failed, 2 where
what there is to compare with is missing or the command line is wrong."""

import argparse
import contextlib
import itertools
import shutil
import signal
import sys
from pathlib import Path

from bench import guest, host, qemu
from bench.errors import BenchError, Missing, Wrong
from bench.hostel import Hostel
from bench.native import Native
from bench.peer import Peer
from bench.qemu import Qemu
from bench.report import Report, Result
from bench.row import Context
from bench.rows import SUITES, select
from hostel.base.errors import HostelError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = {"whole": ROOT / "docs" / "benchmarks.md", "cpu": ROOT / "docs" / "benchmarks-cpu.md",
             "io": ROOT / "docs" / "benchmarks-io.md", "snapshots": ROOT / "docs" / "benchmarks-snapshots.md",
             "containers": ROOT / "docs" / "benchmarks-containers.md"}
PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Hostel, Qemu, Native)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="hostel beside QEMU's TCG on this machine.")
    parser.add_argument("suite", nargs="?", choices=SUITES, default="whole", help="what to measure (default: whole)")
    parser.add_argument("--runs", type=int, metavar="N", help="runs, of which medians are taken (default: 5)")
    parser.add_argument("--rows", default="", metavar="A,B", help="only these rows or groups; --list names them")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help="only these (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, one run: to see that it works")
    parser.add_argument(
        "--profile", action="store_true", help="hostel alone, under perf: where the time of programs goes"
    )
    parser.add_argument("--docs", action="store_true", help="also put the table into docs/, which needs all peers")
    parser.add_argument("--list", action="store_true", help="name the rows and leave")
    args = parser.parse_args(argv)
    args.runs = args.runs if args.runs is not None else 1 if args.quick else 5
    if args.runs < 1:
        parser.error("--runs: at least 1")
    try:
        args.groups = select(args.suite, _words(args.rows))
    except KeyError as e:
        parser.error(f"--rows: there is no {e.args[0]}; --list names what there is")
    try:
        args.peers = [PEERS[name] for name in _words(args.peers)]
    except KeyError as e:
        parser.error(f"--peers: there is no {e.args[0]}; there are {', '.join(PEERS)}")
    if not args.peers:
        parser.error("--peers: at least one")
    if args.profile:
        if not shutil.which("perf"):
            parser.error("--profile: there is no perf; on Debian: apt-get install linux-perf")
        args.peers = [Hostel]
        Hostel.profiles = RESULTS / "profiles"
    if args.docs and len(args.peers) < len(PEERS):
        parser.error("--docs: needs all peers")
    return args


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.list:
        for key, group in args.groups.items():
            print(f"{key}:", *(f"  {row.key:16} {row.title}" for row in group.rows), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no machine is left behind
    try:
        if Qemu in args.peers:
            qemu.check_installed()
        guests = dict.fromkeys(str(group.guest()) for group in args.groups.values())
        boot = guest.micro()
        report = Report(
            host.describe(), {peer.name: peer(boot).version() for peer in args.peers}, "; ".join(guests), args.quick,
            args.runs,
        )
        return measure(args, report)
    except Missing as e:
        print(f"bench: {e}", file=sys.stderr)
        return 2
    except (BenchError, HostelError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def measure(args: argparse.Namespace, report: Report) -> int:
    """All runs, and what they found; after a failure, what was found until then."""
    results = {group: [Result(row) for row in group.rows] for group in args.groups.values()}
    report.results = [result for members in results.values() for result in members]
    report.means = [mean for group in results for mean in group.means]
    report.scalings = [scaling for group in results for scaling in group.scalings]
    busy, error = [], ""
    try:
        for number in range(args.runs):
            busy.append(host.busy_share())
            if number == 0 and busy[0] > host.QUIET:
                print(f"bench: this machine isn't quiet: others use {busy[0]:.0%} of it", file=sys.stderr)
            for boot, groups in itertools.groupby(results, lambda group: group.guest()):
                members = [result for group in groups for result in results[group]]
                run_round(report, args.peers, boot, members, Context(args.quick), number)
    except (BenchError, HostelError, OSError) as e:
        error = str(e)
    except KeyboardInterrupt:
        error = "interrupted"
    say("")
    if max(busy, default=0) > host.QUIET:
        report.warnings.append(
            f"Not quiet: before the runs, others used {min(busy):.0%} to {max(busy):.0%} of the machine."
        )
    if args.quick:
        report.warnings.append("Quick: a tenth of the work, so the rows' titles don't hold.")
    if error:
        report.warnings.append(f"Incomplete: {error}")
    report.results = [result for result in report.results if result.rounds or result.wrong]
    wrong = any(result.wrong for result in report.results)
    print(report.markdown())
    if error:
        print(f"bench: {error}", file=sys.stderr)
    print(f"bench: all values are in {report.save(RESULTS)}", file=sys.stderr)
    if args.docs and not error and not wrong:
        report.write_into(DOCUMENTS[args.suite])
    return 1 if error or wrong else 0


def run_round(
    report: Report, kinds: list[type[Peer]], boot: guest.Guest, results: list[Result], context: Context, number: int
) -> None:
    """One run on one guest: start every peer, measure every row on all of them, end them. Who goes first changes with
    each run."""
    peers = [kind(boot) for kind in kinds]
    if number % 2:
        peers[:2] = reversed(peers[:2])
    with contextlib.ExitStack() as stack:
        for peer in peers:
            stack.callback(peer.close)
        try:
            for peer in peers:
                say(f"run {number + 1}: starting {peer.title}")
                peer.start()
            for result in results:
                say(f"run {number + 1}: {result.row.title}")
                try:
                    result.rounds.append(result.row.measure(peers, context))
                except Wrong as e:
                    result.wrong = str(e)
        except (BenchError, HostelError, OSError):
            say("a peer failed")
            report.diagnosis = {peer.name: peer.diagnosis() for peer in peers}
            raise


def say(text: str) -> None:
    """Progress, on a terminal only: the table is all of the output."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
