"""The chain of trust from a key to a package, and mirrors that break it."""

import hashlib
import lzma
import subprocess
import time
from pathlib import Path

import pysequoia
import pytest
from mirror import deb

from hostel.base.errors import ImageError
from hostel.images import openpgp
from hostel.images.debian import version_key
from hostel.images.sources import Source

SIGNATURE = b"\n-----BEGIN PGP SIGNATURE"
INRELEASE = "/debian/dists/bookworm/InRelease"
INDEX = "/debian/dists/bookworm/main/binary-amd64/Packages.xz"
BUSYBOX = "/debian/pool/main/busybox-static_1.35-4_amd64.deb"


def get(archive, name="busybox-static"):
    return archive.fetch(archive.package(name))


def kept(archive):
    return sorted(path.name for path in archive.cache.rglob("*")) if archive.cache.exists() else []


def refuses(archive, *words, name="busybox-static"):
    """Fetching fails with one line that holds ``words``; returns what is left in the cache."""
    with pytest.raises(ImageError) as caught:
        get(archive, name)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return kept(archive)


def test_a_package_arrives_verified_and_is_cached(verifier, mirror, archive):
    path = get(archive())
    assert path.read_bytes() == mirror.packages["busybox-static", "1:1.35-4"][0]
    mirror.requests.clear()
    get(archive())
    assert [request for request, _ in mirror.requests] == [INRELEASE]


def test_a_changed_release_file_is_refused(verifier, mirror, archive):
    mirror.files[INRELEASE] = mirror.files[INRELEASE].replace(b"Suite: bookworm", b"Suite: bookwurm")
    assert refuses(archive(), "signature", "nothing was kept") == []


def test_another_key_is_refused(verifier, mirror, archive, tmp_path):
    other = tmp_path / "other.gpg"
    other.write_bytes(bytes(pysequoia.Tsk.generate(user_id="Somebody <else@example.org>").extract_certificate()))
    assert refuses(archive(keyring=other), "signature") == []


@pytest.mark.parametrize(
    "garble",
    [
        lambda good: b"<html>Please log in to the hotel's network</html>",
        lambda good: b"",
        lambda good: bytes(range(256)) * 100,
        lambda good: good[: len(good) // 2],
        lambda good: b"Origin: Debian\n" + good,
        lambda good: good + b"Suite: more\n",
        lambda good: good + good,
        lambda good: good.replace(SIGNATURE, b"\n-----BEGIN PGP SIGNED MESSAGE-----\n\nx" + SIGNATURE),
    ],
)
def test_garbage_in_place_of_a_release_file(verifier, mirror, archive, garble):
    mirror.files[INRELEASE] = garble(mirror.files[INRELEASE])
    assert refuses(archive()) == []


def test_text_outside_of_the_signature_never_counts(verifier, mirror, archive):
    """Even if the check of the frame were gone, only signed text comes back."""
    good = mirror.files[INRELEASE]
    keyring = archive().keyring
    message = b"evil\n" + good + b"evil\n"
    if verifier == "gpgv":
        text = openpgp.by_gpgv(openpgp.shutil.which("gpgv"), message, keyring, "x")
    else:
        text = openpgp.by_sequoia(message, keyring, "x")
    assert b"Suite: bookworm" in text and b"evil" not in text


def test_a_changed_index_is_refused(mirror, archive):
    index = bytearray(lzma.decompress(mirror.files[INDEX]))
    mirror.files[INDEX] = lzma.compress(bytes(index).replace(b"1:1.35-4", b"1:9.99-9"))
    assert refuses(archive(), "Packages.xz") == []


def test_a_changed_package_is_refused(mirror, archive):
    data = bytearray(mirror.files[BUSYBOX])
    data[len(data) // 2] ^= 1
    mirror.files[BUSYBOX] = bytes(data)
    assert refuses(archive(), "wrong SHA-256", "nothing was kept") == ["bookworm.Packages.xz"]


def test_a_package_of_another_length_is_refused(mirror, archive):
    mirror.files[BUSYBOX] += b"x"
    assert refuses(archive(), "signed index") == ["bookworm.Packages.xz"]


def test_what_isnt_there(mirror, archive):
    refuses(archive(), "no package nonesuch", name="nonesuch")
    del mirror.files[BUSYBOX]
    refuses(archive(), "404")
    del mirror.files[INRELEASE]
    refuses(archive(), "404")


def test_no_mirror_at_all(mirror, archive):
    mirror.close()
    assert refuses(archive(), "can't fetch", "Connection refused") == []


def test_an_expired_release_file_is_refused(mirror, archive):
    mirror.publish(extra="Valid-Until: Sat, 01 Jan 2022 00:00:00 UTC\n")
    strict = archive()
    strict.check_valid_until = True
    assert refuses(strict, "expired") == []
    lenient = archive()
    lenient.check_valid_until = False
    get(lenient)
    later = time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime(time.time() + 3600))
    mirror.publish(extra=f"Valid-Until: {later}\n")
    get(strict)


def test_by_hash_is_used_where_the_mirror_has_it(mirror, archive):
    mirror.publish(extra="Acquire-By-Hash: yes\n")
    data = mirror.files.pop(INDEX)
    mirror.files[INDEX.replace("Packages.xz", f"by-hash/SHA256/{hashlib.sha256(data).hexdigest()}")] = data
    get(archive())


def test_the_highest_version_of_all_suites_wins(mirror, archive):
    mirror.add("busybox-static", "1:1.35-4+deb12u1", deb({"./bin/busybox": b"newer"}))
    mirror.publish(suite="bookworm-security")
    chosen = (Source(mirror.url, "bookworm"), Source(mirror.url, "bookworm-security"))
    assert archive(chosen=chosen).package("busybox-static").version == "1:1.35-4+deb12u1"


def test_a_third_partys_suite_is_passed_over(mirror, archive):
    mirror.publish(suite="stable", origin="Somebody")
    mirror.files["/debian/dists/stable/InRelease"] = mirror.files["/debian/dists/stable/InRelease"].replace(b"0", b"1")
    chosen = (Source(mirror.url, "bookworm"), Source(mirror.url, "stable"))
    get(archive(chosen=chosen))


def test_a_file_url(mirror, archive, tmp_path):
    for path, data in mirror.files.items():
        where = tmp_path / "tree" / path[1:]
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(data)
    source = Source((tmp_path / "tree/debian").as_uri(), "bookworm")
    assert get(archive(chosen=(source,))).read_bytes() == mirror.files[BUSYBOX]
    refuses(archive(chosen=(Source("file:///no/such/mirror", "bookworm"),)), "there is no /no/such/mirror")


def test_an_index_cant_lead_out_of_the_cache(mirror, archive):
    mirror.publish()
    text = lzma.decompress(mirror.files[INDEX]).replace(b"Filename: pool/main/", b"Filename: ../../../etc/")
    packed = lzma.compress(text)
    mirror.files[INDEX] = packed
    sums = f"SHA256:\n {hashlib.sha256(packed).hexdigest()} {len(packed)} main/binary-amd64/Packages.xz\n"
    mirror.files[INRELEASE] = mirror.signed(f"Origin: Debian\n{sums}")
    refuses(archive(), "damaged")


def test_our_own_keyring_is_debians():
    certificates = list(pysequoia.Cert.split_bytes(openpgp.OWN_KEYRING.read_bytes()))
    names = [str(user) for certificate in certificates for user in certificate.user_ids]
    assert any("12/bookworm" in name for name in names) and any("13/trixie" in name for name in names)


VERSIONS = "1.0~~ 1.0~rc1-1 1.0 1.0-1 1.0-1+b1 1.0-1.1 1.0a 1.0+dfsg-1 1.0.1 1.2 1.10 6.1.176-1 6.1.192-2".split()
VERSIONS += ["1:0.1", "2:0"]


def test_versions_are_ordered_as_debian_does():
    assert sorted(reversed(VERSIONS), key=version_key) == VERSIONS


@pytest.mark.skipif(not Path("/usr/bin/dpkg").exists(), reason="compares with dpkg where there is one")
def test_versions_are_ordered_as_dpkg_does():
    for low, high in zip(VERSIONS, VERSIONS[1:], strict=False):
        assert subprocess.run(["dpkg", "--compare-versions", low, "lt", high]).returncode == 0
