"""A small Debian mirror for tests: signed with a key made on the spot, and able to misbehave."""

import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pysequoia


def tar(files, kind="xz"):
    """A compressed tar of path → bytes; a value (target,) is a symbolic link, a TarInfo is taken as it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, value in files.items():
            entry = tarfile.TarInfo(path)
            if isinstance(value, tuple):
                entry.type, entry.linkname = tarfile.SYMTYPE, value[0]
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(value), 0o755
                archive.addfile(entry, io.BytesIO(value))
    data = buffer.getvalue()
    if kind == "zst":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return {"xz": lzma.compress, "gz": gzip.compress, "tar": bytes}[kind](data)


def deb(files, kind="xz"):
    ending = "" if kind == "tar" else f".{kind}"
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": tar({}), f"data.tar{ending}": tar(files, kind)}
    result = b"!<arch>\n"
    for name, data in parts.items():
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        result += data + b"\n" * (len(data) % 2)
    return result


def module(**info):
    """An ELF file with a .modinfo section and nothing else."""
    modinfo = b"".join(f"{key}={value}\0".encode() for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    at = 64
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, at + len(modinfo) + len(names), 0, 64, 0, 0, 64, 3, 2
    )
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, at, len(modinfo), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, at + len(modinfo), len(names), 0, 0, 1, 0)
    return header + modinfo + names + sections


VERSION = "6.1.0-1-cloud-amd64"
BUSYBOX = b"\x7fELF" + b"\xae [\0[[\0ash\0ls\0mount\0poweroff\0sh\0\0" + bytes(100)
DEPENDS = {
    "virtio": "virtio_ring",
    "virtio_ring": "",
    "virtio_pci_modern_dev": "",
    "virtio_pci": "virtio,virtio_ring,virtio-pci-modern-dev",
    "net_failover": "",
    "virtio_net": "net_failover,virtio",
    "virtio_rng": "rng-core,virtio",
    "vsock": "",
    "vmw_vsock_virtio_transport": "vsock,virtio",
    "fuse": "",
    "virtiofs": "fuse,virtio",
    **dict.fromkeys("virtio_blk virtio_console virtio_balloon virtio_scsi virtio_mmio".split(), "virtio"),
    **dict.fromkeys("overlay squashfs".split(), ""),
}


def kernel_files(version=VERSION, kernel=b"MZ a kernel"):
    """What a kernel package holds; one module is compressed, as newer releases' are."""
    base = f"./lib/modules/{version}"
    files = {f"./boot/vmlinuz-{version}": kernel, f"{base}/modules.builtin": b"kernel/drivers/char/rng-core.ko\n"}
    for name, depends in DEPENDS.items():
        data = module(alias=f"virtio:{name}", depends=depends, name=name)
        if name == "overlay":
            files[f"{base}/kernel/{name}.ko.xz"] = lzma.compress(data)
        else:
            files[f"{base}/kernel/{name.replace('_', '-')}.ko"] = data
    return files


class Mirror:
    """Serves one suite over HTTP on this machine; ``files`` may be changed after ``publish``."""

    def __init__(self):
        self.key = pysequoia.Tsk.generate(user_id="Test Archive <test@example.org>")
        self.keyring = bytes(self.key.extract_certificate())
        self.packages = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []  # path and Range
        self.cut_after: dict[str, int] = {}  # end the connection after so many bytes, once
        self.ignore_range = False
        self.statuses: dict[str, list[int]] = {}  # answers before the good one
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                mirror.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/debian"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        path, wanted = request.path, request.headers.get("Range", "")
        self.requests.append((path, wanted))
        request.close_connection = True
        if self.statuses.get(path):
            request.send_error(self.statuses[path].pop(0))
            return
        if path not in self.files:
            request.send_error(404)
            return
        data = self.files[path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not self.ignore_range else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : start + self.cut_after.pop(path, len(data))])

    def add(self, name, version, data, depends=""):
        self.packages[name, version] = (data, depends)

    def add_image_packages(self, version=VERSION, kernel=b"MZ a kernel"):
        """What the micro image is made of."""
        self.add("linux-image-cloud-amd64", "6.1.1-1", deb({}), f"linux-image-{version} (= 6.1.1-1)")
        self.add(f"linux-image-{version}", "6.1.1-1", deb(kernel_files(version, kernel)))
        self.add("busybox-static", "1:1.35-4", deb({"./bin/busybox": BUSYBOX}))

    def publish(self, extra="", suite="bookworm", origin="Debian"):
        index = ""
        for (name, version), (data, depends) in self.packages.items():
            filename = f"pool/main/{name}_{version.rpartition(':')[2]}_amd64.deb"  # without the epoch, as dak has it
            self.files[f"/debian/{filename}"] = data
            index += f"Package: {name}\nVersion: {version}\nDescription: a\n test\n"
            if depends:
                index += f"Depends: {depends}\n"
            index += f"Filename: {filename}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
        packed = lzma.compress(index.encode())
        folder = f"/debian/dists/{suite}"
        self.files[f"{folder}/main/binary-amd64/Packages.xz"] = packed
        sha256 = hashlib.sha256(packed).hexdigest()
        text = f"Origin: {origin}\nSuite: {suite}\n{extra}MD5Sum:\n {'0' * 32} 1 main/binary-amd64/Packages.xz\n"
        text += f"SHA256:\n {sha256} {len(packed):>8} main/binary-amd64/Packages.xz\n"
        self.files[f"{folder}/InRelease"] = self.signed(text)

    def signed(self, text):
        return pysequoia.sign(self.key.signer(), text.encode(), mode=pysequoia.SignatureMode.CLEAR)
