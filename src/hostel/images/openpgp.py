"""Who signed a file: clear-signed OpenPGP messages (RFC 9580, 7) against a keyring.

``gpgv`` judges where the host has it, as in apt; Debian 13 and slim containers may not, and there the
library ``pysequoia`` does. Either way only what the signature covers is handed back: text around the
signed part (the classic trick) never reaches the caller.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from hostel.base.errors import ImageError

HOST_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OWN_KEYRING = Path(__file__).with_name("debian-archive-keyring.gpg")


def debian_keyring() -> Path:
    """The host's, which its owner keeps up to date, else the one of this package."""
    return HOST_KEYRING if HOST_KEYRING.exists() else OWN_KEYRING


def signed_text(message: bytes, keyring: Path, what: str) -> str:
    """The text in ``message`` that a key of ``keyring`` signed. Raises ImageError: nobody known did."""
    if not message.startswith(b"-----BEGIN PGP SIGNED MESSAGE-----"):
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
    """gpgv writes out what was signed, and says yes if one signature is good and none is bad."""
    with tempfile.TemporaryDirectory(prefix="hostel-") as folder:
        path, out = Path(folder, "message"), Path(folder, "text")
        path.write_bytes(message)
        done = subprocess.run(
            [gpgv, "--homedir", folder, "--keyring", keyring.absolute(), "--output", out, path],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
        if done.returncode and not_ours_alone(done.stderr) is False:
            lines = re.findall(r"gpgv: ((?:BAD|Can't|no valid|verify|invalid|assuming).*)", done.stderr)
            raise refused(what, (lines or ["gpgv refused it"])[0])
        return out.read_bytes()


def not_ours_alone(report: str) -> bool:
    """Whether gpgv said no only because it doesn't know *another* signer's key.

    Debian signs with the keys of two or three releases, and an older keyring lacks the newest: apt, too,
    is content with one good signature as long as none is bad.
    """
    return "Good signature from" in report and "BAD signature" not in report


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
        raise refused(what, str(error).split("\n")[0]) from error
    return result.bytes
