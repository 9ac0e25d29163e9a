"""List, inspect, make, fetch, publish and remove images: the VMs' (kernels and disks) and OCI images."""

import argparse
import json
import sys
from typing import Any

from hostel.cli.parser import add_names, each
from hostel.cli.table import print_table

_KIND = "for programs: an object"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    ls = actions.add_parser("ls", help="list the images on this machine")
    ls.add_argument("-q", "--quiet", action="store_true", help="names only")
    ls.add_argument("--json", action="store_true", help="for programs: a list of objects")

    inspect = actions.add_parser("inspect", help="show what an image is made of")
    inspect.add_argument("name", metavar="IMAGE")
    inspect.add_argument("--json", action="store_true", help=_KIND)

    pull = actions.add_parser("pull", help="bring an OCI image from its registry, or a VM's image up to date")
    pull.add_argument("name", metavar="IMAGE", nargs="?", default="micro", help="[REGISTRY/]REPOSITORY[:TAG][@DIGEST]")
    add_registry(pull)
    pull.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", default="linux/amd64", help="(linux/amd64)")
    pull.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_limits(pull)
    pull.add_argument("--json", action="store_true", help=_KIND)

    push = actions.add_parser("push", help="bring an OCI image to a registry")
    push.add_argument("name", metavar="IMAGE")
    push.add_argument("target", metavar="TARGET", nargs="?", help="by another name there")
    add_registry(push)
    push.add_argument("-q", "--quiet", action="store_true", help="show no progress")

    load = actions.add_parser("load", help="read OCI images from an archive (OCI's or Docker's) or a layout's folder")
    load.add_argument("-i", "--input", metavar="PATH", default="-", help="a file, or FOLDER[:TAG] (standard input)")
    load.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", default="linux/amd64", help="(linux/amd64)")
    load.add_argument("-q", "--quiet", action="store_true", help="print names only")
    add_limits(load)

    save = actions.add_parser("save", help="write OCI images to an archive or a layout's folder")
    save.add_argument("names", metavar="IMAGE", nargs="+")
    save.add_argument("-o", "--output", metavar="PATH", default="-", help="a file, or a folder (standard output)")
    save.add_argument("--format", choices=("oci-archive", "docker-archive", "oci"), default="oci-archive",
                      help="'oci' is a layout's folder (oci-archive)")  # fmt: skip

    tag = actions.add_parser("tag", help="give an OCI image another name")
    tag.add_argument("name", metavar="IMAGE")
    tag.add_argument("target", metavar="NAME")

    history = actions.add_parser("history", help="show how an OCI image was made")
    history.add_argument("name", metavar="IMAGE")
    history.add_argument("--json", action="store_true", help="for programs: a list of objects")

    build = actions.add_parser("build", help="make a disk image: a whole Debian, by mmdebstrap")
    build.add_argument("name", metavar="debian[:SUITE]", help="of the host's own suite, or another: debian:trixie")
    build.add_argument("--include", default="", metavar="PKG,...", help="packages besides; cloud-init, for example")
    build.add_argument("--size", default="8G", metavar="SIZE", help="of the disk, of which what is used is stored (8G)")
    build.add_argument("--ssh-key", metavar="FILE", help="a public key that may log in as root")
    build.add_argument("--json", action="store_true", help=_KIND)

    rm = actions.add_parser("rm", help="remove images; VMs made from them stay")
    rm.add_argument("-f", "--force", action="store_true", help="OCI images that containers stand on, too: their names")
    add_names(rm, "images, by name or ID")

    prune = actions.add_parser("prune", help="remove OCI images without a name, and what no image needs any more")
    prune.add_argument("-a", "--all", action="store_true", help="every OCI image that no container stands on")

    login = actions.add_parser("login", help="keep a name and a password for a registry")
    login.add_argument("registry", metavar="REGISTRY", nargs="?", default="docker.io")
    login.add_argument("-u", "--username", metavar="NAME", help="asked for without this")
    login.add_argument("--password-stdin", action="store_true", help="take the password from standard input")
    login.add_argument("--tls-verify", choices=("true", "false"), default="true", help="as for 'pull'")

    logout = actions.add_parser("logout", help="forget them")
    logout.add_argument("registry", metavar="REGISTRY", nargs="?", default="docker.io")


def add_registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-verify", choices=("true", "false"), default="true",
                        help="false: any certificate will do, and plain HTTP where there is no TLS (true)")  # fmt: skip
    parser.add_argument("--creds", metavar="NAME:PASSWORD", help="for this time; other users can see it in 'ps'")


def add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-size", metavar="SIZE", help="of a layer, unpacked (128G)")
    parser.add_argument("--max-entries", metavar="N", type=int, help="files and folders in a layer (4000000)")
    parser.add_argument("--max-ratio", metavar="N", type=int, help="how much a layer may be packed (250)")
    parser.add_argument("--no-unpack", action="store_true", help="it is unpacked when it is run")


def run(args: argparse.Namespace) -> int:
    return globals()[f"run_{args.action}"](args)


# -- both kinds


def run_ls(args: argparse.Namespace) -> int:
    from hostel.base.units import format_rough
    from hostel.images import store
    from hostel.images.oci.store import Store

    images, containers = store.images(), Store().images()
    if args.json:
        found = [described(image) for image in images] + [described_oci(image) for image in containers]
        print(json.dumps(found, indent=2))
        return 0
    if args.quiet:
        for image in images:
            print(image.name)
        for oci in containers:
            print(*map(short, oci.names or (oci.digest,)), sep="\n")
        return 0
    table = [["NAME", "KIND", "IS", "SIZE", "CREATED"]]
    for image in images:
        kernel = f"Linux {image.kernel_version}"
        table.append([image.name, "vm", kernel, format_rough(image.size), image.created[:16].replace("T", " ")])
    for oci in containers:
        created = (oci.config.created or "")[:16].replace("T", " ")
        for name in oci.names or ("",):
            is_ = oci.id.partition(":")[2][:12]
            table.append([short(name) if name else "<none>", "oci", is_, format_rough(oci.size), created])
    print_table(table)
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    from hostel.images import store

    found = find_vm_image(args.name)
    if found is None:
        oci = find_oci_image(args.name)
        if oci is None:
            raise store.unknown(args.name, built=True)
        print(json.dumps(described_oci(oci, whole=True), indent=2))
    elif args.json:
        print(json.dumps(described(found), indent=2))
    else:
        print((found.folder / "image.toml").read_text(), end="")
    return 0


def run_pull(args: argparse.Namespace) -> int:
    from hostel.images import store

    if args.name.partition(":")[0] in (*store.RECIPES, *store.DISKS):
        image = store.pull(args.name)
        print(json.dumps(described(image), indent=2) if args.json else f"{image.name}: Linux {image.kernel_version}")
        return 0
    from hostel.client.images import Images
    from hostel.images.oci import reference

    oci = Images.pull(args.name, args.platform, access(args), progress(args), limits(args), not args.no_unpack)
    name = reference.parse(args.name).familiar
    print(json.dumps(described_oci(oci), indent=2) if args.json else f"{name}: {oci.id}")
    return 0


def run_rm(args: argparse.Namespace) -> int:
    from hostel.images import store
    from hostel.images.oci.store import Store

    def remove(name: str) -> None:
        if store.NAME.fullmatch(name) and store.folder(name).exists() or find_oci_image(name) is None:
            store.remove(name)
        else:
            Store().remove(name, args.force)

    return each(args.names, remove)


def find_vm_image(name: str) -> Any:
    from hostel.images import store

    return store.find(name) if store.NAME.fullmatch(name) else None


def find_oci_image(name: str) -> Any:
    from hostel.images.oci.store import Store

    return Store().find(name)


# -- VMs' images


def run_build(args: argparse.Namespace) -> int:
    from hostel.base.units import parse_size
    from hostel.images import bootstrap, seed, store

    key = "\n".join(seed.public_keys(args.ssh_key)) if args.ssh_key else ""
    include = tuple(filter(None, args.include.replace(",", " ").split()))
    options = bootstrap.Options(include=include, size=parse_size(args.size), ssh_key=key)
    options.check()
    image = store.build(args.name, options)
    print(json.dumps(described(image), indent=2) if args.json else f"{image.name}: Linux {image.kernel_version}")
    return 0


def described(image: Any) -> dict[str, Any]:
    import tomllib

    return {
        **tomllib.loads((image.folder / "image.toml").read_text()),
        "folder": str(image.folder),
        "size": image.size,
        "kind": "vm",
    }


# -- OCI images


def run_push(args: argparse.Namespace) -> int:
    from hostel.client.images import Images

    target = Images.push(args.name, args.target, access(args), progress(args))
    print(target if "@" in target else f"{target}@{Images.get(args.name).digest}")
    return 0


def run_load(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client.images import Images

    if args.input == "-" and sys.stdin.isatty():
        raise UsageError("image load: name a file with -i, or let the archive come in by standard input")
    for image in Images.load(sys.stdin.buffer if args.input == "-" else args.input, args.platform):
        if not args.no_unpack:
            image.unpack(limits(args))
        for name in image.names or (image.digest,):
            print(short(name) if args.quiet else f"loaded {short(name)}")
    return 0


def run_save(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client.images import Images

    if args.output == "-" and (args.format == "oci" or sys.stdout.isatty()):
        raise UsageError("image save: name a file or folder with -o")
    Images.save(args.names, sys.stdout.buffer if args.output == "-" else args.output, args.format)
    return 0


def run_tag(args: argparse.Namespace) -> int:
    from hostel.images.oci.store import Store

    Store().tag(args.name, args.target)
    return 0


def run_history(args: argparse.Namespace) -> int:
    from hostel.base.units import format_rough
    from hostel.images.oci.store import Store

    image = Store().get(args.name)
    layers = iter(image.layers)
    steps: list[dict[str, Any]] = []
    for step in image.config.history or []:
        layer = None if step.empty_layer else next(layers, None)
        steps.append({
            "created": step.created, "created_by": step.created_by or "", "comment": step.comment or "",
            "size": layer.blob.size if layer else 0, "layer": layer.blob.digest if layer else None,
        })  # fmt: skip
    steps += [
        {"created": None, "created_by": "", "comment": "", "size": layer.blob.size, "layer": layer.blob.digest}
        for layer in layers
    ]
    steps.reverse()
    if args.json:
        print(json.dumps(steps, indent=2))
        return 0
    table = [["LAYER", "CREATED", "SIZE", "BY"]]
    for each_step in steps:
        layer_id = (each_step["layer"] or "<none>").rpartition(":")[2][:12]
        by = printable(each_step["created_by"] or each_step["comment"])
        created = (each_step["created"] or "")[:16].replace("T", " ")
        table.append([layer_id, printable(created), format_rough(each_step["size"]), by[:60]])
    print_table(table)
    return 0


def run_prune(args: argparse.Namespace) -> int:
    from hostel.base.units import format_rough
    from hostel.images.oci.store import Store

    print(f"freed {format_rough(Store().prune(args.all))}")
    return 0


def run_login(args: argparse.Namespace) -> int:
    import getpass

    from hostel.base.errors import UsageError
    from hostel.images.oci import credentials, registry

    if args.password_stdin:
        if not args.username:
            raise UsageError("image login: --password-stdin needs --username")
        name, password = args.username, sys.stdin.readline().rstrip("\r\n")
    else:
        if not sys.stdin.isatty():
            raise UsageError("image login: there is no terminal to ask at; see --password-stdin")
        name = args.username or input("name: ")
        password = getpass.getpass("password: ")
    registry.check_login(args.registry, name, password, registry.Access(verify=args.tls_verify == "true"))
    path = credentials.keep(args.registry, name, password)
    print(f"kept in {path}")
    return 0


def run_logout(args: argparse.Namespace) -> int:
    from hostel.images.oci import credentials

    credentials.forget(args.registry)
    return 0


def access(args: argparse.Namespace) -> Any:
    from hostel.images.oci.registry import Access

    return Access(verify=args.tls_verify == "true", login=args.creds)


def limits(args: argparse.Namespace) -> Any:
    import dataclasses

    from hostel.base.units import parse_size
    from hostel.images.oci.limits import Limits

    given = {"size": parse_size(args.max_size) if args.max_size else None, "entries": args.max_entries,
             "ratio": args.max_ratio}  # fmt: skip
    return dataclasses.replace(Limits(), **{key: value for key, value in given.items() if value is not None})


def progress(args: argparse.Namespace) -> Any:
    from hostel.images.fetch import Bar, Silence

    return Silence() if args.quiet or not sys.stderr.isatty() else Bar()


def short(name: str) -> str:
    from hostel.images.oci import reference

    return name if name.startswith("sha") and ":" in name and "/" not in name else reference.parse(name).familiar


def printable(text: str) -> str:
    """What an image says of itself may not steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def described_oci(image: Any, whole: bool = False) -> dict[str, Any]:
    import msgspec

    found = {
        "kind": "oci",
        "name": image.name,
        "names": list(image.names),
        "id": image.id,
        "digest": image.digest,
        "platform": str(image.config.platform),
        "size": image.size,
        "created": image.config.created,
    }
    if whole:
        found |= {
            "media_type": image.entry.media_type,
            "config": msgspec.to_builtins(image.config.execution),
            "history": msgspec.to_builtins(image.config.history or []),
            "layers": [
                {"media_type": layer.blob.media_type, "digest": layer.blob.digest, "size": layer.blob.size,
                 "diff_id": layer.diff_id, "unpacked": image.store.layers.note(layer) is not None}
                for layer in image.layers
            ],
        }  # fmt: skip
    return found
