"""Pull and push: with Debian's docker-registry and skopeo, and with a registry of our own that does harm."""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import os
import random
import re
import socket
import socketserver
import ssl
import subprocess
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from oci_layouts import Layout, layer, need, sha256, skopeo, start_registry, tree

from hostel.base.errors import ImageError
from hostel.images.oci import archive, config, credentials, reference, rootfs
from hostel.images.oci import registry as oci_registry
from hostel.images.oci.registry import Access
from hostel.images.oci.store import Store

FAST = Access(pauses=(0, 0, 0))


def flat(image, folder):
    folder.mkdir()
    rootfs.flatten(image.unpack(), folder)
    return tree(folder)


def make(tmp_path, *tars, name="made", **options):
    made = Layout(tmp_path / name)
    made.image(*tars, **options)
    return made


# -- real peers


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_pushes_and_we_pull(registry, store, tmp_path, form):
    folder = make(tmp_path, layer(("a", b"1"), ("b", b"1")), layer((".wh.a", b""), ("c", b"2")), tag="t").folder
    skopeo("copy", "--format", form, "--dest-tls-verify=false", f"oci:{folder}:t", f"docker://{registry}/{form}/it:t")
    image = store.pull(f"{registry}/{form}/it:t")
    assert flat(image, tmp_path / "flat") == {"b": b"1", "c": b"2"}
    told = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{registry}/{form}/it:t"))
    assert told["Digest"] == image.digest
    by_digest = store.pull(f"{registry}/{form}/it@{image.digest}")
    assert by_digest.digest == image.digest and len(store.images()) == 1
    assert image.entry.media_type == (config.DOCKER_MANIFEST if form == "v2s2" else config.OCI_MANIFEST)


def test_we_push_and_skopeo_copies(registry, store, tmp_path, monkeypatch):
    [image] = archive.source(store, str(make(tmp_path, layer(("a", os.urandom(1 << 20)))).folder), None)
    push(image, f"{registry}/pushed/it:1")
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry}/pushed/it:1", f"oci:{tmp_path}/back:1")
    [back] = archive.source(Store(tmp_path / "other"), f"{tmp_path}/back:1", None)
    assert back.digest == image.digest and flat(back, tmp_path / "f") == flat(image, tmp_path / "g")
    store.name(image.entry, reference.parse(f"{registry}/pushed/it:1"))
    with monkeypatch.context() as patch:
        patch.setattr(oci_registry.Sending, "_upload", lambda *_: pytest.fail("a blob was sent again"))
        push(image, f"{registry}/mounted/it:1")
    assert json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{registry}/mounted/it:1"))["Digest"]


def push(image, target):
    return oci_registry.push(image, target, access=FAST)


def test_upload_in_pieces(registry, store, tmp_path, monkeypatch):
    monkeypatch.setattr(oci_registry, "CHUNK", 300_000)
    content = os.urandom(1_000_001)
    [image] = archive.source(store, str(make(tmp_path, layer(("a", content)), pack=bytes, suffix="").folder), None)
    push(image, f"{registry}/pieces/it:1")
    again = Store(tmp_path / "other").pull(f"{registry}/pieces/it:1")
    assert flat(again, tmp_path / "flat") == {"a": content}


def test_an_index_for_several_platforms(registry, store, tmp_path):
    made = Layout(tmp_path / "several")
    entries = [made.image(layer(("a", name.encode())), architecture=name, listed=False) for name in ("amd64", "arm64")]
    made.index(*entries, tag="t")
    skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{made.folder}:t", f"docker://{registry}/several/it:t")
    assert flat(store.pull(f"{registry}/several/it:t"), tmp_path / "x") == {"a": b"amd64"}
    other = store.pull(f"{registry}/several/it:t", platform=config.platform("linux/arm64"))
    assert flat(other, tmp_path / "y") == {"a": b"arm64"}
    with pytest.raises(ImageError, match="isn't there for linux/s390x; it is for linux/amd64, linux/arm64"):
        store.pull(f"{registry}/several/it:t", platform=config.platform("linux/s390x"))
    [loaded] = archive.source(Store(tmp_path / "o"), str(made.folder), None, config.platform("linux/arm64"))
    assert loaded.config.architecture == "arm64"


def test_zstd_layers_from_a_registry(registry, store, tmp_path):
    import zstandard

    content = os.urandom(1 << 20)
    made = make(tmp_path, layer(("a", content)), pack=zstandard.ZstdCompressor().compress, suffix="+zstd")
    [image] = archive.source(store, str(made.folder), None)
    push(image, f"{registry}/zstd/it:1")
    assert flat(Store(tmp_path / "other").pull(f"{registry}/zstd/it:1"), tmp_path / "f") == {"a": content}


def test_what_umoci_makes_and_unpacks(registry, store, tmp_path):
    need("umoci", "skopeo")
    if os.geteuid():
        pytest.skip("umoci unpacks as root")

    def umoci(*arguments):
        subprocess.run(["umoci", *arguments], check=True, capture_output=True, cwd=tmp_path)

    umoci("init", "--layout", "l")
    umoci("new", "--image", "l:t")
    for number in range(2):
        umoci("unpack", "--image", "l:t", f"b{number}")
        root = tmp_path / f"b{number}/rootfs"
        if number:
            (root / "d/old").unlink()
            (root / "d/new").write_text("new")
        else:
            (root / "d").mkdir()
            (root / "d/old").write_text("old")
            os.link(root / "d/old", root / "hard")
            os.chown(root / "hard", 5, 6)
            os.setxattr(root / "d", "user.a", b"b")
        umoci("repack", "--image", "l:t", f"b{number}")
    umoci("config", "--image", "l:t", "--architecture", "amd64", "--os", "linux", "--config.env", "A=b")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/l:t", f"docker://{registry}/umoci/it:t")
    image = store.pull(f"{registry}/umoci/it:t")
    assert image.config.env == ["A=b"]
    umoci("unpack", "--image", "l:t", "theirs")
    assert flat(image, tmp_path / "ours") == tree(tmp_path / "theirs/rootfs")
    for name in ("d", "hard"):
        ours, theirs = (tmp_path / where / name for where in ("ours", "theirs/rootfs"))
        assert (ours.stat().st_mode, ours.stat().st_uid, ours.stat().st_mtime_ns) == (
            theirs.stat().st_mode, theirs.stat().st_uid, theirs.stat().st_mtime_ns)  # fmt: skip
        assert os.listxattr(ours) == os.listxattr(theirs)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_archives_to_and_from_skopeo(store, tmp_path, form):
    need("skopeo")
    [image] = archive.source(store, str(make(tmp_path, layer(("a", b"1")), layer(("b", b"2")), tag="t").folder), None)
    with open(tmp_path / "ours.tar", "wb") as file:
        archive.save([image], file, form)
    skopeo("copy", f"{form}:{tmp_path}/ours.tar", f"oci:{tmp_path}/back:t")
    skopeo("copy", f"oci:{tmp_path}/back:t", f"{form}:{tmp_path}/theirs.tar:example.org/it:t")
    other = Store(tmp_path / "other")
    with open(tmp_path / "theirs.tar", "rb") as file:
        [theirs] = archive.load(other, file, "theirs")
    assert flat(theirs, tmp_path / "flat") == {"a": b"1", "b": b"2"}
    packed = subprocess.run(["gzip", "-c", tmp_path / "theirs.tar"], capture_output=True, check=True).stdout
    [again] = archive.load(Store(tmp_path / "third"), io.BytesIO(packed), "packed")
    assert again.config == theirs.config


SECRET = "$2b$04$bjomE2aFX4RwZm5GvWhA2OJf8Ht.jcDjpiz2mPT1HEwlr.jDU6rmi"  # bcrypt's of 'secret'
PASSWORDS = "auth: {{htpasswd: {{realm: here, path: {path}}}}}"


@pytest.fixture
def closed(tmp_path):
    """A registry that wants the name 'me' and the password 'secret'."""
    (tmp_path / "htpasswd").write_text(f"me:{SECRET}\n")
    process, address = start_registry(tmp_path / "closed", PASSWORDS.format(path=tmp_path / "htpasswd"))
    yield address
    process.kill()
    process.wait()


def test_names_and_passwords(closed, store, tmp_path):
    [image] = archive.source(store, str(make(tmp_path, layer(("a", b"1"))).folder), None)
    target = f"{closed}/it:1"
    with pytest.raises(ImageError, match="hostel image login"):
        push(image, target)
    with pytest.raises(ImageError, match="doesn't let us in"):
        oci_registry.check_login(closed, "me", "wrong", FAST)
    oci_registry.check_login(closed, "me", "secret", FAST)
    path = credentials.keep(closed, "me", "secret")
    assert path.stat().st_mode & 0o777 == 0o600
    push(image, target)
    credentials.forget(closed)
    with pytest.raises(ImageError, match="hostel image login"):
        store.pull(target, access=FAST)
    assert store.pull(target, access=Access(login="me:secret")).digest == image.digest


# -- a registry of our own


class Fake:
    """A registry that has one image, and the habits that a test gives it."""

    def __init__(self, tls=None):
        self.blobs, self.manifests, self.log = {}, {}, []
        self.break_after = 0  # bytes of a blob, once
        self.ranges = True
        self.replace = {}  # digest to other bytes
        self.fail = []  # (status) for the next requests
        self.redirect = ""
        self.token = ""
        self.uploads = {}
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, data=b"", **headers):
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def do_GET(self):
                fake.log.append((self.command, self.path, dict(self.headers)))
                if self.path.startswith("/token"):
                    fake.asked = (parse_qs(urlsplit(self.path).query), self.headers.get("Authorization"))
                    return self.answer(200, json.dumps({"token": fake.token}).encode())
                if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
                    challenge = f'Bearer realm="{fake.url}/token",service="fake",scope="repository:it:pull"'
                    return self.answer(401, WWW_Authenticate=challenge)
                if fake.fail:
                    return self.answer(fake.fail.pop(0))
                if "/manifests/" in self.path:
                    found = fake.manifests.get(self.path.rpartition("/")[2])
                    return self.answer(200, found[1], Content_Type=found[0]) if found else self.answer(404)
                digest = self.path.rpartition("/")[2]
                if "/uploads/" in self.path:
                    return self.answer(204, Location=self.path, Range=f"0-{max(len(fake.uploads[self.path]) - 1, 0)}")
                if fake.redirect and "?" not in self.path:
                    return self.answer(307, Location=fake.redirect + self.path + "?")
                data = fake.blobs.get(digest.rstrip("?"))
                if data is None:
                    return self.answer(404)
                data = fake.replace.get(digest, data)
                start = 0
                if fake.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                    start = int(wanted[1])
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                if self.command == "HEAD":
                    return
                data = data[start:]
                if fake.break_after and len(data) > fake.break_after:
                    self.wfile.write(data[: fake.break_after])
                    fake.break_after = 0
                    self.close_connection = True
                else:
                    with contextlib.suppress(OSError):
                        self.wfile.write(data)

            do_HEAD = do_GET

            def do_POST(self):
                fake.log.append((self.command, self.path, dict(self.headers)))
                place = f"/v2/it/blobs/uploads/{len(fake.uploads)}"
                fake.uploads[place] = b""
                self.answer(202, Location=place)

            def do_PATCH(self):
                fake.log.append((self.command, self.path, dict(self.headers)))
                size = int(self.headers["Content-Length"])
                if fake.break_after and size > fake.break_after:
                    fake.uploads[self.path] += self.rfile.read(fake.break_after)
                    fake.break_after = 0
                    self.close_connection = True
                    return
                start = int(self.headers["Content-Range"].partition("-")[0])
                data = self.rfile.read(size)
                if start != len(fake.uploads[self.path]):
                    return self.answer(416)
                fake.uploads[self.path] += data
                self.answer(202, Location=self.path, Range=f"0-{len(fake.uploads[self.path]) - 1}")

            def do_PUT(self):
                fake.log.append((self.command, self.path, dict(self.headers)))
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if "/manifests/" in self.path:
                    fake.manifests[self.path.rpartition("/")[2]] = (self.headers["Content-Type"], data)
                else:
                    whole = fake.uploads[self.path.partition("?")[0]] + data
                    assert parse_qs(urlsplit(self.path).query)["digest"] == [sha256(whole)]
                    fake.blobs[sha256(whole)] = whole
                self.answer(201)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http{'s' if tls else ''}://{self.address}"

    def add(self, layout, entry, tag="latest"):
        for path in (layout.folder / "blobs/sha256").iterdir():
            self.blobs[f"sha256:{path.name}"] = path.read_bytes()
        data = self.blobs[entry["digest"]]
        self.manifests[tag] = self.manifests[entry["digest"]] = (entry["mediaType"], data)

    def gets(self, digest):
        return [headers for method, path, headers in self.log if method == "GET" and digest in path]


@pytest.fixture
def fake():
    made = Fake()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def big(fake, layout):
    """The descriptor of the only layer, of 3 MB that don't pack, of the image 'it'."""
    content = random.Random(1).randbytes(3 << 20)
    entry = layout.image(layer(("a", content)), pack=bytes, suffix="")
    fake.add(layout, entry)
    return json.loads(fake.blobs[entry["digest"]])["layers"][0]


def test_a_transfer_that_breaks_goes_on_where_it_was(fake, big, store):
    fake.break_after = 1_000_000
    store.pull(f"{fake.address}/it", access=FAST)
    ranges = [headers.get("Range") for headers in fake.gets(big["digest"])]
    assert len(ranges) == 2 and ranges[0] is None
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 1_000_000


def test_the_next_pull_goes_on_too(fake, big, store, tmp_path):
    fake.break_after = 1_000_000
    with pytest.raises(ImageError, match="the next pull goes on"):
        store.pull(f"{fake.address}/it", access=Access(pauses=()))
    assert store.images() == []
    part = store.blobs.part(big["digest"])
    had = part.stat().st_size
    assert had
    image = store.pull(f"{fake.address}/it", access=FAST)
    assert fake.gets(big["digest"])[-1]["Range"] == f"bytes={had}-"
    assert not part.exists() and len(flat(image, tmp_path / "flat")["a"]) == 3 << 20


def test_a_server_without_ranges_sends_all_again(fake, big, store):
    fake.ranges = False
    fake.break_after = 1_000_000
    assert store.pull(f"{fake.address}/it", access=FAST)


def test_a_damaged_begin_is_fetched_anew(fake, big, store):
    part = store.blobs.part(big["digest"])
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert store.pull(f"{fake.address}/it", access=FAST)
    assert len(fake.gets(big["digest"])) == 2


@pytest.mark.parametrize("change", ["other", "longer", "shorter"])
def test_a_blob_that_is_another(fake, big, store, change):
    data = fake.blobs[big["digest"]]
    wrong = {"other": data[:-1] + bytes([data[-1] ^ 1]), "longer": data + b"x", "shorter": data[:-1]}
    fake.replace[big["digest"]] = wrong[change]
    with pytest.raises(ImageError, match="sent something else|sent more|connection ended after"):
        store.pull(f"{fake.address}/it", access=FAST)
    assert store.images() == [] and not store.blobs.path(big["digest"]).exists()
    assert not list(store.layers.all())
    del fake.replace[big["digest"]]
    assert store.pull(f"{fake.address}/it", access=FAST)


def test_a_manifest_that_is_another(fake, big, store):
    digest = sha256(fake.manifests["latest"][1])
    fake.manifests[digest] = (config.OCI_MANIFEST, fake.manifests["latest"][1] + b" ")
    with pytest.raises(ImageError, match="sent something else"):
        store.pull(f"{fake.address}/it@{digest}", access=FAST)


def test_an_index_whose_manifest_is_another(fake, big, layout, store):
    entry = layout.manifests[0]
    index = json.dumps({"schemaVersion": 2, "manifests": [{**entry, "size": entry["size"] + 1}]}).encode()
    fake.manifests["latest"] = (config.OCI_INDEX, index)
    with pytest.raises(ImageError, match="isn't what it should be"):
        store.pull(f"{fake.address}/it", access=FAST)


def test_endless_manifests(fake, big, store):
    fake.manifests["latest"] = (config.OCI_MANIFEST, bytes(config.MANIFEST_LIMIT + 1))
    with pytest.raises(ImageError, match="has more than"):
        store.pull(f"{fake.address}/it", access=FAST)


def test_trouble_that_passes_and_that_does_not(fake, big, store):
    fake.fail = [503, 429]
    assert store.pull(f"{fake.address}/it", access=FAST)
    fake.fail = [500] * 20
    with pytest.raises(ImageError, match="said 500"):
        store.pull(f"{fake.address}/it", access=FAST)
    fake.fail = []
    with pytest.raises(ImageError, match="404"):
        store.pull(f"{fake.address}/it:none", access=FAST)
    fake.server.shutdown()
    fake.server.server_close()
    with pytest.raises(ImageError, match="can't reach"):
        store.pull(f"{fake.address}/it", access=FAST)


def test_tokens(fake, big, store):
    fake.token = "abc"
    store.pull(f"{fake.address}/it", access=Access(login="me:secret"))
    query, authorization = fake.asked
    assert query == {"service": ["fake"], "scope": ["repository:it:pull"]}
    assert authorization == "Basic " + base64.b64encode(b"me:secret").decode()
    assert sum(path.startswith("/token") for _, path, _ in fake.log) == 1


def test_blobs_elsewhere_get_no_authorization(fake, big, store):
    other = Fake()
    try:
        other.blobs = fake.blobs
        fake.token, fake.redirect = "abc", other.url
        store.pull(f"{fake.address}/it", access=FAST)
        assert other.log and all("Authorization" not in headers for _, _, headers in other.log)
        fake.redirect = "file:///etc/passwd#"
        with pytest.raises(ImageError, match="isn't safe"):
            Store(store.folder / "other").pull(f"{fake.address}/it", access=FAST)
    finally:
        other.server.shutdown()
        other.server.server_close()


def test_redirections_without_end(fake, big, store):
    fake.redirect = "/again"
    with pytest.raises(ImageError):
        store.pull(f"{fake.address}/it", access=FAST)


def test_mirrors_come_first(fake, big, store):
    home = store.folder.parent.parent
    home.mkdir(parents=True, exist_ok=True)
    (home / "registries.toml").write_text(f'[mirrors]\n"example.invalid" = ["{fake.address}/some"]\n')
    image = store.pull("example.invalid/it", access=Access(pauses=()))
    assert image.names == ("example.invalid/it:latest",)
    assert fake.log[0][1] == "/v2/some/it/manifests/latest"
    (home / "registries.toml").write_text("[mirrors]\n'example.invalid' = 3\n")
    with pytest.raises(ImageError, match="registries.toml"):
        store.pull("example.invalid/it")


def test_an_upload_that_breaks_goes_on_where_it_was(fake, store, tmp_path):
    content = os.urandom(3 << 20)
    [image] = archive.source(store, str(make(tmp_path, layer(("a", content)), pack=bytes, suffix="").folder), None)
    fake.break_after = 1_000_000
    push(image, f"{fake.address}/it:1")
    ranges = [headers["Content-Range"] for method, _, headers in fake.log if method == "PATCH"]
    assert any(text.startswith("1000000-") for text in ranges)
    assert Store(tmp_path / "other").pull(f"{fake.address}/it:1", access=FAST).digest == image.digest
    fake.log.clear()
    push(image, f"{fake.address}/it:1")
    assert not any(method in ("PATCH", "POST") for method, _, _ in fake.log)


def test_a_broken_off_pull_leaves_no_threads(fake, big, store):
    fake.replace[big["digest"]] = b""
    with pytest.raises(ImageError):
        store.pull(f"{fake.address}/it", access=FAST)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("fetch", "unpack"))]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    need("openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key", "-out", folder / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert", folder / "key"


def test_certificates(certificate, store, layout, monkeypatch):
    fake = Fake(certificate)
    try:
        fake.add(layout, layout.image(layer(("a", b"1"))))
        with pytest.raises(ImageError, match="can't prove who it is.*--tls-verify=false"):
            store.pull(f"{fake.address}/it", access=FAST)
        assert store.pull(f"{fake.address}/it", access=Access(verify=False, pauses=()))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert Store(store.folder / "other").pull(f"{fake.address}/it", access=FAST)
    finally:
        fake.server.shutdown()
        fake.server.server_close()


class Proxy(socketserver.BaseRequestHandler):
    """Takes CONNECT to anywhere, and leads it to ``target``."""

    target: tuple[str, int]
    asked: list[bytes] = []

    def handle(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.request.recv(1)
        self.asked.append(head.split(b"\r\n")[0])
        with socket.create_connection(self.target) as there:
            self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=self.copy, args=(there, self.request), daemon=True)
            back.start()
            self.copy(self.request, there)
            back.join()

    @staticmethod
    def copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_proxies(certificate, store, layout, monkeypatch):
    fake = Fake(certificate)
    fake.add(layout, layout.image(layer(("a", b"1"))))
    Proxy.target = fake.server.server_address
    proxy = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    try:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        assert store.pull("registry.invalid/it", access=Access(verify=False, pauses=()))
        assert {line.rpartition(b" ")[0] for line in Proxy.asked} == {b"CONNECT registry.invalid:443"}
        monkeypatch.setenv("no_proxy", "invalid")
        with pytest.raises(ImageError, match="is unknown here"):
            Store(store.folder / "other").pull("registry.invalid/it", access=Access(verify=False, pauses=()))
    finally:
        for server in (proxy, fake.server):
            server.shutdown()
            server.server_close()


def test_hashes_of_sha512(fake, store, layout):
    """A manifest whose layer has a digest of another algorithm."""
    tar = layer(("a", b"1"))
    digest = "sha512:" + hashlib.sha512(tar).hexdigest()
    entry = layout.image(tar, pack=bytes, suffix="")
    manifest = json.loads((layout.folder / "blobs/sha256" / entry["digest"][7:]).read_bytes())
    manifest["layers"][0]["digest"] = digest
    entry = layout.blob(json.dumps(manifest).encode(), config.OCI_MANIFEST)
    fake.add(layout, entry)
    fake.blobs[digest] = tar
    assert store.pull(f"{fake.address}/it", access=FAST).layers[0].blob.digest == digest
    fake.replace[digest] = tar[:-1] + b"x"
    with pytest.raises(ImageError, match="something else"):
        Store(store.folder / "other").pull(f"{fake.address}/it", access=FAST)


def test_what_a_crash_of_the_host_made_of_blobs_is_brought_again(fake, big, store):
    """Blobs aren't flushed: after a crash they may be zeros of the right length."""
    image = store.pull(f"{fake.address}/it", access=FAST)
    big_blob = image.manifest.layers[0]
    for blob in (image.entry, image.manifest.config, big_blob):
        store.blobs.path(blob.digest).write_bytes(bytes(blob.size))
    assert store.images() == []
    assert store.pull(f"{fake.address}/it", access=FAST).digest == image.digest  # the layer is unpacked, and believed
    for _, path in store.layers.all():
        store.layers.remove(path)
    with pytest.raises(ImageError, match="was damaged on the disk, and was removed"):
        store.get(f"{fake.address}/it").unpack()
    assert store.pull(f"{fake.address}/it", access=FAST).unpack()
    assert store.blobs.has(big_blob)
