"""Who signed a file: clear-signed OpenPGP messages (RFC 9580, 7) against a keyring.

``gpgv`` judges where the host has it, as in apt; Debian 13 and slim containers may not, and there the
library ``pysequoia`` does. Either way only what the signature covers is handed back: text around the
signed part (the classic trick) never reaches the caller.
"""

import re
import shutil
import subprocess
from pathlib import Path

from hostel.base.errors import ImageError

HOST_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OWN_KEYRING = Path(__file__).with_name("debian-archive-keyring.gpg")

# A line of the text that begins with a dash is escaped ("- -----"), so further markers are further messages.
ONE_SIGNED_MESSAGE = re.compile(
    rb"-----BEGIN PGP SIGNED MESSAGE-----\r?\n.*"
    rb"\n-----BEGIN PGP SIGNATURE-----\r?\n.*\n-----END PGP SIGNATURE-----\s*",
    re.DOTALL,
)


def debian_keyring() -> Path:
    """The host's, which its owner keeps up to date, else the one of this package."""
    return HOST_KEYRING if HOST_KEYRING.exists() else OWN_KEYRING


def signed_text(message: bytes, keyring: Path, what: str) -> str:
    """The text in ``message`` that a key of ``keyring`` signed. Raises ImageError: nobody known did."""
    if not ONE_SIGNED_MESSAGE.fullmatch(message) or message.count(b"\n-----BEGIN") != 1:
        raise ImageError(f"{what} is no signed release file; the mirror, or something before it, serves garbage")
    gpgv = shutil.which("gpgv")
    text = by_gpgv(gpgv, message, keyring, what) if gpgv else by_sequoia(message, keyring, what)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageError(f"{what} isn't text") from error


def refused(what: str, why: str) -> ImageError:
    return ImageError(f"the signature of {what} isn't Debian's ({why}); nothing was kept")


def by_gpgv(gpgv: str, message: bytes, keyring: Path, what: str) -> bytes:
    """As apt judges: a good signature, and none that is bad.

    Debian signs with the keys of two or three releases. An older keyring lacks the newest, so that gpgv's
    own exit status would be no.
    """
    command = [gpgv, "--homedir", "/nonexistent", "--weak-digest", "SHA1", "--keyring", str(keyring.absolute())]
    try:
        done = subprocess.run(
            [*command, "--status-fd", "2", "--output", "-"], input=message, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"gpgv doesn't work here: {error}") from error
    report = done.stderr.decode(errors="replace").splitlines()
    words = {line.split()[1] for line in report if line.startswith("[GNUPG:] ")}
    if "GOODSIG" not in words or "VALIDSIG" not in words or "BADSIG" in words:
        kinds = {"BADSIG": "it is bad", "EXPKEYSIG": "an expired key's", "REVKEYSIG": "a revoked key's"}
        raise refused(what, next((text for word, text in kinds.items() if word in words), "an unknown key's"))
    return done.stdout


def by_sequoia(message: bytes, keyring: Path, what: str) -> bytes:
    try:
        import pysequoia
    except ImportError as error:
        raise ImageError(
            "nothing here can verify signatures: install gpgv (apt install gpgv) or pip install pysequoia"
        ) from error
    try:
        certificates = list(pysequoia.Cert.split_bytes(keyring.read_bytes()))
        result = pysequoia.verify(message, store=lambda ids: certificates)
    except Exception as error:  # the library raises bare RuntimeErrors, with a backtrace in their text
        raise refused(what, "no good signature of a known key") from error
    return bytes(result.bytes or b"")
