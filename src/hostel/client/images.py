"""The SDK's OCI images: what ``hostel image`` does, for programs.

    image = Images.pull("docker.io/library/busybox")
    print(image.digest, image.config.env)
    Images.save([image.name], "busybox.tar")
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from hostel.images.fetch import Progress
    from hostel.images.oci.limits import Limits
    from hostel.images.oci.registry import Access
    from hostel.images.oci.store import Image


class Images:
    """Those on this machine. Everything raises ImageError, with one line of text."""

    @staticmethod
    def pull(
        name: str, platform: str = "linux/amd64", access: "Access | None" = None, progress: "Progress | None" = None,
        limits: "Limits | None" = None, unpack: bool = True,
    ) -> "Image":  # fmt: skip
        """From its registry."""
        from hostel.images.oci import config, registry
        from hostel.images.oci.store import Store

        return registry.pull(Store(), name, config.platform(platform), access, progress, limits, unpack)

    @staticmethod
    def push(
        name: str, target: str | None = None, access: "Access | None" = None, progress: "Progress | None" = None
    ) -> str:
        """To a registry, under its own name or ``target``; the name there."""
        from hostel.images.oci import registry
        from hostel.images.oci.store import Store

        return str(registry.push(Store().get(name), target or name, access, progress))

    @staticmethod
    def load(source: "str | os.PathLike[str] | BinaryIO", platform: str = "linux/amd64") -> "list[Image]":
        """From an archive (a path or an open file) or a layout's folder (``FOLDER:TAG`` for one image of it)."""
        from hostel.images.oci import archive, config
        from hostel.images.oci.store import Store

        wanted = config.platform(platform)
        if isinstance(source, (str, os.PathLike)):
            return archive.read(Store(), os.fspath(source), wanted)
        return archive.load(Store(), source, "the stream", wanted)

    @staticmethod
    def save(
        names: Iterable[str], target: "str | os.PathLike[str] | BinaryIO", format: str = "oci-archive"
    ) -> None:
        """As an ``oci-archive`` or a ``docker-archive``, into a file or an open one, or as ``oci``, a folder."""
        from hostel.base import atomic
        from hostel.images.oci import archive, layout
        from hostel.images.oci.store import Store

        store = Store()
        with store.using():
            images = store.named(names)
            if not isinstance(target, (str, os.PathLike)):
                archive.save(images, target, format)
            elif format == "oci":
                layout.save(images, Path(target))
            else:
                with atomic.replacing(Path(target), durable=False) as file:
                    archive.save(images, file, format)

    @staticmethod
    def get(name: str) -> "Image":
        """By name, or by the begin of its ID."""
        from hostel.images.oci.store import Store

        return Store().get(name)

    @staticmethod
    def all() -> "list[Image]":
        from hostel.images.oci.store import Store

        return Store().images()

    @staticmethod
    def tag(name: str, target: str) -> None:
        from hostel.images.oci.store import Store

        Store().tag(name, target)

    @staticmethod
    def rm(name: str, force: bool = False) -> None:
        from hostel.images.oci.store import Store

        Store().remove(name, force)

    @staticmethod
    def prune(all_: bool = False) -> int:
        """Removes images without a name (``all_``: those that no container stands on) and what no image needs; bytes
        that were freed."""
        from hostel.images.oci.store import Store

        return Store().prune(all_)
