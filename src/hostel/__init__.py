"""hostel: whole computers as ordinary processes.

    from hostel import VM
    with VM.run("micro", cpus=2, memory="512M") as vm:
        print(vm.exec(["uname", "-r"]).stdout)
"""

from hostel._version import __version__

__all__ = ["VM", "Container", "Images", "Network", "Volume", "__version__"]


def __getattr__(name: str) -> object:  # the SDK is loaded on first use: the CLI starts faster without it
    if name == "VM":
        from hostel.client.vm import VM

        return VM
    if name == "Container":
        from hostel.client.container import Container

        return Container
    if name == "Images":
        from hostel.client.images import Images

        return Images
    if name == "Network":
        from hostel.client.network import Network

        return Network
    if name == "Volume":
        from hostel.client.volume import Volume

        return Volume
    raise AttributeError(f"module 'hostel' has no attribute '{name}'")
