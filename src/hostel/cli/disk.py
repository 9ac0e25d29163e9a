"""Make, look at, change and convert disk images: raw and qcow2, in the words of qemu-img.

  hostel disk create web.qcow2 20G                          a disk that grows as it is written
  hostel disk create -b base.qcow2 -F qcow2 web.qcow2       one that begins as a copy of base.qcow2
  hostel disk convert -c web.qcow2 small.qcow2              compressed
  hostel disk convert -O raw web.qcow2 /dev/shm/web.raw
  hostel disk resize web.qcow2 +10G
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

DESCRIPTIONS = {
    "create": "make an image",
    "info": "show what an image is",
    "check": "look for damage, and mend it",
    "resize": "make a disk larger or smaller",
    "convert": "copy a disk into a new image, of another format or compressed",
    "commit": "write an image into the one below it",
    "rebase": "put another image below one, or none",
    "map": "show where a disk's bytes are",
}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    subs = {name: actions.add_parser(name, help=text, description=text) for name, text in DESCRIPTIONS.items()}
    for name, sub in subs.items():
        formats = "the format of the new image (qcow2)" if name == "create" else "its format, if that isn't to be seen"
        sub.add_argument("-f", "--format", metavar="FORMAT", help=f"{formats}: raw or qcow2")
        sub.add_argument("path", metavar="FILE")
        if name != "check":
            sub.add_argument(
                "--allow-backing", action="store_true",
                help="open what the image names as its backing or data file, wherever that is",
            )
    for name in ("info", "check", "map"):
        subs[name].add_argument("--json", action="store_true", help="for programs, as qemu-img's")
        subs[name].add_argument("-U", "--force-share", action="store_true", help="though another has it open")
    for name in ("create", "convert"):
        subs[name].add_argument(
            "-o", "--options", metavar="K=V,...", action="append", default=[],
            help="cluster_size=64K, compat=1.1, refcount_bits=16, lazy_refcounts=off, extended_l2=off, "
            "compression_type=zlib, preallocation=off, data_file=FILE, data_file_raw=off",
        )
        subs[name].add_argument("--force", action="store_true", help="replace an image that is there")

    create = subs["create"]
    create.add_argument("size", metavar="SIZE", nargs="?", help="as 20G; not needed with a backing file")
    create.add_argument("-b", "--backing", metavar="FILE", help="what the disk reads as where it wasn't written")
    create.add_argument("-F", "--backing-format", metavar="FORMAT", help="its format")

    subs["info"].add_argument("--backing-chain", action="store_true", help="also of the images below it")
    subs["check"].add_argument(
        "-r", "--repair", choices=["leaks", "all"], help="free clusters that nobody uses, or mend everything"
    )

    subs["resize"].add_argument("size", metavar="SIZE", help="as 20G, or +10G for so much more")
    subs["resize"].add_argument("--shrink", action="store_true", help="smaller is meant, and what is behind is lost")

    convert = subs["convert"]
    convert.add_argument("target", metavar="NEW")
    convert.add_argument("-O", "--target-format", metavar="FORMAT", default="qcow2", help="raw or qcow2 (qcow2)")
    convert.add_argument("-c", "--compress", action="store_true", help="pack its clusters (qcow2 only)")
    for name in ("convert", "commit", "rebase"):
        subs[name].add_argument("-p", "--progress", action="store_true", help="show how far it is")

    subs["commit"].add_argument("-b", "--base", metavar="FILE", help="into this one of those below, not the next")
    subs["commit"].add_argument("-d", "--keep", action="store_true", help="don't empty the image afterwards")

    rebase = subs["rebase"]
    rebase.add_argument("-b", "--backing", metavar="FILE", required=True, help="the new backing file; '' for none")
    rebase.add_argument("-F", "--backing-format", metavar="FORMAT", help="its format")
    rebase.add_argument("-u", "--unsafe", action="store_true", help="change the name only: the content is the same")


def run(args: argparse.Namespace) -> int:
    return globals()[f"_{args.action}"](args) or 0


def _open(args: argparse.Namespace, readonly: bool = True, **more: Any) -> Any:
    from pathlib import Path

    from hostel.block.chain import open_chain

    allow, share = getattr(args, "allow_backing", False), getattr(args, "force_share", False)
    return open_chain(Path(args.path), args.format, readonly, allow_backing=allow, locked=not share, **more)


def _options(format: str, words: list[str]) -> dict[str, Any]:
    from hostel.base.errors import UsageError
    from hostel.block.create import parse_options

    pairs = {}
    for word in ",".join(words).split(","):
        name, equals, value = word.partition("=")
        if word and not equals:
            raise UsageError(f"'{word}' is not NAME=VALUE")
        if word:
            pairs[name] = value
    return parse_options(format, pairs)


def _create(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hostel.base.units import parse_size
    from hostel.block.create import create_image

    format = args.format or "qcow2"
    options = _options(format, args.options)
    if args.backing:
        options["backing_file"] = args.backing
    if args.backing_format:
        options["backing_fmt"] = args.backing_format
    size = None if args.size is None else parse_size(args.size)
    create_image(Path(args.path), format, size, options, args.force, args.allow_backing)


def _info(args: argparse.Namespace) -> None:
    from hostel.block.info import describe

    disk = _open(args, bare=not args.backing_chain)
    described = [describe(each) for each in disk.chain()]
    disk.close()
    if args.json:
        print(json.dumps(described if args.backing_chain else described[0], indent=4))
    else:
        print("\n".join(_info_text(each) for each in described), end="")


def _info_text(info: dict[str, Any]) -> str:
    """The same for people, as qemu-img writes it."""
    lines = [
        f"image: {info['filename']}",
        f"file format: {info['format']}",
        f"virtual size: {_size(info['virtual-size'])} ({info['virtual-size']} bytes)",
        f"disk size: {_size(info['actual-size'])}",
    ]
    if "cluster-size" in info:
        lines.append(f"cluster_size: {info['cluster-size']}")
    if info["dirty-flag"]:
        lines.append("cleanly shut down: no")
    if "backing-filename" in info:
        name, full = info["backing-filename"], info["full-backing-filename"]
        lines.append(f"backing file: {name}" + ("" if name == full else f" (actual path: {full})"))
        if "backing-filename-format" in info:
            lines.append(f"backing file format: {info['backing-filename-format']}")
    if "snapshots" in info:
        lines.append("Snapshot list:")
        lines.append(f"{'ID':9} {'TAG':16} {'VM SIZE':>8} {'DATE':>19} {'VM CLOCK':>12}")
        lines += [_snapshot_text(snapshot) for snapshot in info["snapshots"]]
    if "format-specific" in info:
        lines.append("Format specific information:")
        for key, value in info["format-specific"]["data"].items():
            text = str(value).lower() if isinstance(value, bool) else value
            lines.append(f"    {key.replace('-', ' ')}: {text}")
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines) + "\n"


def _snapshot_text(snapshot: dict[str, Any]) -> str:
    import time

    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot["date-sec"]))
    seconds = snapshot["vm-clock-sec"]
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{snapshot['vm-clock-nsec'] // 10**6:03}"
    size = _size(snapshot["vm-state-size"])
    return f"{snapshot['id']:9} {snapshot['name']:16} {size:>8} {date:>19} {clock:>12}"


def _size(size: int) -> str:
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.3g} {units[0]}"


def _check(args: argparse.Namespace) -> int:
    """qemu-img's exit statuses: 2 damage, 3 leaks, 63 nothing to check in this format, 1 it couldn't be checked."""
    from hostel.base.errors import BlockError
    from hostel.block import info

    try:
        disk, found = _checked(args)
    except BlockError as error:
        error.status = 63 if "does not support checks" in str(error) else 1
        raise
    described = info.checked(disk, found)
    disk.close()
    if args.json:
        print(json.dumps(described, indent=4))
    else:
        _print_check(described, found)
    return 1 if found.check_errors else 2 if found.corruptions else 3 if found.leaks else 0


def _checked(args: argparse.Namespace) -> tuple[Any, Any]:
    from pathlib import Path

    from hostel.block.qcow2.check import check, open_to_repair, repair

    if args.repair:
        # probed as any other; the chain isn't opened, as a dirty image would be mended by that
        disk = _open(args, bare=True)
        path = Path(disk.path)
        disk.close()
        if disk.format == "qcow2":
            disk = open_to_repair(path)
            try:
                return disk, repair(disk, args.repair == "leaks")
            except BaseException:
                disk.close()
                raise
    disk = _open(args, bare=True)
    try:
        return disk, check(disk)
    except BaseException:
        disk.close()
        raise


def _print_check(info: dict[str, Any], found: Any) -> None:
    for message in found.messages:
        print(message, file=sys.stderr)
    fixed = info.get("leaks-fixed", 0), info.get("corruptions-fixed", 0)
    if any(fixed):
        print(f"The following inconsistencies were found and repaired:\n\n    {fixed[0]} leaked clusters")
        print(f"    {fixed[1]} corruptions\n")
    if found.corruptions:
        print(f"{found.corruptions} errors were found on the image.\nData may be corrupted, or further writes to the "
              "image may corrupt it.")  # fmt: skip
    if found.leaks:
        print(f"{found.leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to "
              "data.")  # fmt: skip
    if not found.corruptions and not found.leaks:
        print("No errors were found on the image.")
    total, used = found.total_clusters, found.allocated_clusters
    if total and used:
        print(f"{used}/{total} = {100 * used / total:.2f}% allocated, {100 * found.fragmented_clusters / used:.2f}% "
              f"fragmented, {100 * found.compressed_clusters / used:.2f}% compressed clusters")  # fmt: skip
    print(f"Image end offset: {found.image_end_offset}")


def _resize(args: argparse.Namespace) -> None:
    from hostel.base.errors import UsageError
    from hostel.base.units import format_size, parse_size

    disk = _open(args, readonly=False)
    try:
        size = disk.size + parse_size(args.size[1:]) if args.size[:1] == "+" else parse_size(args.size)
        size = size + 511 & -512
        if size < disk.size and not args.shrink:
            raise UsageError(
                f"{args.path} has {format_size(disk.size)}: --shrink makes it smaller, and what is behind is lost"
            )
        disk.resize(size)
    finally:
        disk.close()


def _progress(args: argparse.Namespace) -> Callable[[int, int], None] | None:
    if not args.progress:
        return None
    last = -1

    def tell(done: int, whole: int) -> None:
        nonlocal last
        percent = 100 * done // max(whole, 1)
        if percent != last:
            last = percent
            print(f"\r    {percent} %", end="\n" if percent == 100 else "", file=sys.stderr, flush=True)

    return tell


def _convert(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hostel.block.convert import convert

    source = _open(args)
    try:
        convert(
            source, Path(args.target), args.target_format, _options(args.target_format, args.options), args.compress,
            args.force, _progress(args),
        )
    finally:
        source.close()


def _commit(args: argparse.Namespace) -> None:
    from hostel.base.errors import BlockError
    from hostel.block.layers import commit

    top = _open(args, readonly=False)
    try:
        depth = 1
        if args.base:
            below = [depth for depth, disk in enumerate(top.chain()) if _same(disk.path, args.base) and depth]
            if not below:
                raise BlockError(f"{args.path} doesn't stand on {args.base}")
            depth = below[0]
        commit(top, depth, args.keep, _progress(args))
    finally:
        top.close()


def _same(one: Any, other: Any) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _rebase(args: argparse.Namespace) -> None:
    from hostel.block.layers import rebase

    top = _open(args, readonly=False, alone=args.unsafe)
    try:
        rebase(top, args.backing or None, args.backing_format, args.unsafe, args.allow_backing, _progress(args))
    finally:
        top.close()


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"


def _map(args: argparse.Namespace) -> None:
    from hostel.block.info import joined, mapped

    disk = _open(args)
    try:
        extents = joined(disk.extents(0, disk.size))
        if args.json:
            lines = ",\n".join(json.dumps(mapped(extent)) for extent in extents)
            print(f"[{lines}]")
            return
        print(f"{'Offset':15} {'Length':15} {'Mapped to':15} File")
        for extent in extents:
            if extent.data and not extent.zero:
                place = "compressed" if extent.offset is None else _hex(extent.offset)
                print(f"{_hex(extent.start):15} {_hex(extent.length):15} {place:15} {extent.path}")
    finally:
        disk.close()
