"""List, inspect, make and remove images."""

import argparse
import json
from typing import Any

from hostel.cli.parser import add_names, each


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    ls = actions.add_parser("ls", help="list the images on this machine")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--json", action="store_true", help="for programs: a list of objects")

    inspect = actions.add_parser("inspect", help="show what an image is made of")
    inspect.add_argument("name", metavar="IMAGE")
    inspect.add_argument("--json", action="store_true", help="for programs: an object")

    pull = actions.add_parser("pull", help="make an image, or bring it up to date")
    pull.add_argument("name", metavar="IMAGE", nargs="?", default="micro")
    pull.add_argument("--json", action="store_true", help="for programs: an object")

    build = actions.add_parser("build", help="make a disk image: a whole Debian, by mmdebstrap")
    build.add_argument("name", metavar="debian[:SUITE]", help="of the host's own suite, or another: debian:trixie")
    build.add_argument("--include", default="", metavar="PKG,...", help="packages besides; cloud-init, for example")
    build.add_argument("--size", default="8G", metavar="SIZE", help="of the disk, of which what is used is stored (8G)")
    build.add_argument("--ssh-key", metavar="FILE", help="a public key that may log in as root")
    build.add_argument("--json", action="store_true", help="for programs: an object")

    rm = actions.add_parser("rm", help="remove images; VMs made from them stay")
    add_names(rm, "images, by name")


def run(args: argparse.Namespace) -> int:
    from hostel.images import store

    if args.action == "rm":
        return each(args.names, store.remove)
    if args.action == "ls":
        return show_list(args)
    if args.action in ("pull", "build"):
        image = build(args) if args.action == "build" else store.pull(args.name)
        print(json.dumps(described(image), indent=2) if args.json else f"{image.name}: Linux {image.kernel_version}")
        return 0
    found = store.find(args.name)
    if found is None:
        raise store.unknown(args.name, built=True)
    if args.json:
        print(json.dumps(described(found), indent=2))
    else:
        print((found.folder / "image.toml").read_text(), end="")
    return 0


def build(args: argparse.Namespace) -> Any:
    from hostel.base.units import parse_size
    from hostel.images import bootstrap, seed, store

    key = "\n".join(seed.public_keys(args.ssh_key)) if args.ssh_key else ""
    include = tuple(filter(None, args.include.replace(",", " ").split()))
    options = bootstrap.Options(include=include, size=parse_size(args.size), ssh_key=key)
    options.check()
    return store.build(args.name, options)


def show_list(args: argparse.Namespace) -> int:
    from hostel.base.units import format_rough
    from hostel.images import store

    images = store.images()
    if args.json:
        print(json.dumps([described(image) for image in images], indent=2))
        return 0
    if args.quiet:
        print("".join(f"{image.name}\n" for image in images), end="")
        return 0
    table = [["NAME", "KERNEL", "SIZE", "CREATED"]]
    for image in images:
        table.append([image.name, image.kernel_version, format_rough(image.size), image.created[:16].replace("T", " ")])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def described(image: Any) -> dict[str, Any]:
    import tomllib

    return {
        **tomllib.loads((image.folder / "image.toml").read_text()),
        "folder": str(image.folder),
        "size": image.size,
    }
