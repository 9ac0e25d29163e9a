"""One repository of one registry over HTTP (distribution-spec 1.1): requests with their authorization, redirections
and second attempts.

``urllib3`` keeps connections for several threads, and knows proxies and certificates. A registry on this machine
itself, and one that needn't prove who it is (``verify``), may do without TLS; nobody else may, and nobody leads from
https to http. Passwords go to the registry and to the server for tokens that it names, never further.
"""

import base64
import contextlib
import ipaddress
import json
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from hostel._version import __version__
from hostel.base.errors import ImageError
from hostel.images.oci import credentials
from hostel.images.oci.credentials import Login
from hostel.images.oci.reference import DEFAULT_REGISTRY

PAUSES = (0.5, 2.0, 5.0)  # seconds between attempts
TIMEOUT = urllib3.Timeout(connect=15.0, read=60.0)  # seconds without a byte
CONNECTIONS = 4
_REDIRECTIONS = 5
_ANSWER_LIMIT = 1 << 20  # bytes of a token or an error
_HOSTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


class Interrupted(Exception):
    """It went wrong, and may go better next time."""


class Refused(ImageError):
    """The registry's answer is no; ``status`` as HTTP has it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Access:
    """``verify``: whether the registry must prove who it is. ``login``: NAME:PASSWORD instead of what is kept."""

    verify: bool = True
    login: str | None = field(default=None, repr=False)
    pauses: tuple[float, ...] = PAUSES


class Session:
    """Requests to ``registry`` about ``repository``; ``actions``: pull, or pull,push. Threads may share it."""

    def __init__(self, registry: str, repository: str, access: Access, actions: str = "pull") -> None:
        self.registry, self.repository, self.access = registry, repository, access
        self.scopes = [f"repository:{repository}:{actions}"] if repository else []
        self.local = is_local(registry)
        self._host = _HOSTS.get(registry, registry)
        self._scheme = "https"
        self._pool = _pool(registry, access)
        self._authorization = ""
        self._lock = threading.Lock()

    @property
    def base(self) -> str:
        return f"{self._scheme}://{self._host}"

    def url(self, path: str) -> str:
        return f"{self.base}{path}" if path.startswith("/") else f"{self.base}/v2/{self.repository}/{path}"

    def close(self) -> None:
        self._pool.clear()

    @contextlib.contextmanager
    def request(
        self, method: str, path: str, expected: tuple[int, ...] = (200,), headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None, once: bool = False,
    ) -> Iterator[urllib3.BaseHTTPResponse]:  # fmt: skip
        """The answer, whose body is still to be read. ``path``: beneath the repository, or the registry
        (``/v2/``), or a whole URL. Raises Refused;
        with ``once`` Interrupted, else it is tried several times before that is an ImageError."""
        for attempt in range(len(self.access.pauses) + 1):
            try:
                answer = self._authorized(method, path, dict(headers or {}), body)
                if answer.status in (408, 429) or answer.status >= 500:
                    answer.close()
                    raise Interrupted(f"the registry said {answer.status} {answer.reason or ''}".rstrip())
                break
            except Interrupted as error:
                if once:
                    raise
                if attempt == len(self.access.pauses):
                    raise ImageError(f"can't reach {self.registry}: {error}") from error
                time.sleep(self.access.pauses[attempt])
        try:
            if answer.status not in expected:
                raise self._refusal(method, path, answer)
            yield answer
        finally:
            if answer.length_remaining == 0:
                answer.drain_conn()  # http.client wants an empty body to be read, too
                answer.release_conn()
            else:
                answer.close()

    def _authorized(self, method: str, path: str, headers: dict[str, str], body: Callable[[], Any] | None) -> Any:
        sent = self._authorization
        answer = self._sent(method, path, headers, body, sent)
        if answer.status != 401:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        said = _said(answer)
        answer.close()
        with self._lock:
            if self._authorization == sent:  # else another thread has been there meanwhile
                self._authorization = self._answer(challenge, said)
        return self._sent(method, path, headers, body, self._authorization)

    def _sent(self, method: str, path: str, headers: dict[str, str], body: Any, authorization: str) -> Any:
        url = path if "://" in path else self.url(path)
        headers = {"User-Agent": f"hostel/{__version__}", **headers}
        for _ in range(_REDIRECTIONS):
            mine = urlsplit(url).netloc == self._host
            if mine and authorization:
                headers["Authorization"] = authorization
            else:
                headers.pop("Authorization", None)
            answer = self._one(method, url, headers, body)
            if answer is None:  # it speaks no TLS, and needn't
                url = url.replace("https://", "http://", 1)
                continue
            if answer.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            answer.close()
            self.check(target)
            url = target
        raise ImageError(f"{self.registry} leads from one place to the next without end")

    def check(self, url: str) -> None:
        """Whether it may lead there."""
        scheme = urlsplit(url).scheme
        if scheme != "https" and not (scheme == "http" and (self._scheme == "http" or not self.access.verify)):
            raise ImageError(f"{self.registry} leads to {url[:200]!r}, which isn't safe: it must be https")

    def _one(self, method: str, url: str, headers: dict[str, str], body: Any) -> Any:
        may_fall = (self.local or not self.access.verify) and url.startswith(f"https://{self._host}/")
        try:
            return self._pool.request(
                method, url, headers=headers, body=body() if body else None, preload_content=False, redirect=False,
                decode_content=False, retries=False, timeout=TIMEOUT,
            )  # fmt: skip
        except (urllib3.exceptions.SSLError, urllib3.exceptions.ProxyError) as error:
            reason = error.args[0] if error.args else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ImageError(
                    f"{urlsplit(url).hostname} can't prove who it is ({reason.verify_message}); if that is as it should"
                    f" be, put its authority's certificate in {_CERTIFICATES[0]}/{self.registry}/ca.crt, or use"
                    " --tls-verify=false"
                ) from error
            if may_fall and isinstance(error, urllib3.exceptions.SSLError):
                self._scheme = "http"
                return None
            raise Interrupted(_reason(error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if may_fall and isinstance(error, urllib3.exceptions.NewConnectionError) and ":" not in self.registry:
                self._scheme = "http"  # nothing at the port of https
                return None
            if isinstance(error, urllib3.exceptions.NameResolutionError):  # asking again makes no name known
                raise ImageError(f"can't reach {self.registry}: {_reason(error)}") from error
            raise Interrupted(_reason(error)) from error
        except ValueError as error:
            raise ImageError(f"{url[:200]!r} is no address") from error

    # -- authorization

    def _login(self) -> Login | None:
        if self.access.login is not None:
            name, colon, password = self.access.login.partition(":")
            if not colon:
                raise ImageError("--creds takes NAME:PASSWORD")
            return Login(name, password)
        return credentials.find(self.registry)

    def _answer(self, challenge: str, said: str) -> str:
        """The header by which the next attempt may succeed. Raises ImageError where there is none."""
        scheme, _, rest = challenge.partition(" ")
        login = self._login()
        if scheme.lower() == "basic":
            if not login:
                raise ImageError(f"{self.registry} wants a name and a password: 'hostel image login {self.registry}'")
            header = _basic(login)
            if header == self._authorization:
                raise self._wrong(said)
            return header
        if scheme.lower() != "bearer":
            raise ImageError(f"{self.registry} wants to know who asks in a way that isn't known here: {scheme[:40]!r}")
        values = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(rest)}
        realm = values.get("realm", "")
        self.check(realm)
        scopes = list(dict.fromkeys([*self.scopes, *values.get("scope", "").split()]))
        return f"Bearer {self._token(realm, values.get('service', ''), scopes, login)}"

    def _token(self, realm: str, service: str, scopes: list[str], login: Login | None) -> str:
        fields = [("service", service), *(("scope", scope) for scope in scopes)]
        headers = {"User-Agent": f"hostel/{__version__}"}
        if login and login.token:
            form = [("grant_type", "refresh_token"), ("refresh_token", login.token), ("client_id", "hostel"),
                    ("service", service), ("scope", " ".join(scopes))]  # fmt: skip
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._one("POST", realm, headers, lambda: urlencode(form).encode())
        else:
            if login:
                headers["Authorization"] = _basic(login)
            answer = self._one("GET", f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}", headers, None)
        if answer is None:
            raise Interrupted("the server for tokens speaks no TLS")
        data = answer.read(_ANSWER_LIMIT)
        answer.close()
        if answer.status in (400, 401, 403):
            raise self._wrong(_said_in(data))
        try:
            values = json.loads(data) if answer.status == 200 else {}
            token = values.get("token") or values.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Interrupted(f"the server for tokens said {answer.status}")
        return token

    def _wrong(self, said: str) -> Refused:
        advice = f"'hostel image login {self.registry}' with other ones" if self._login() else (
            f"'hostel image login {self.registry}'")  # fmt: skip
        return Refused(f"{self.registry} doesn't let us in{f' ({said})' if said else ''}; {advice}", 401)

    def _refusal(self, method: str, path: str, answer: Any) -> Refused:
        said = _said(answer)
        if answer.status == 401:
            return self._wrong(said)
        if answer.status == 403:
            return Refused(
                f"{self.registry} refuses {self.repository}{f' ({said})' if said else ''}; it may not exist, or want a"
                f" 'hostel image login {self.registry}'", answer.status)  # fmt: skip
        what = f"{self.registry}/{self.repository} {path.partition('?')[0]}" if "://" not in path else self.registry
        return Refused(f"{method} {what}: {answer.status} {said or answer.reason}", answer.status)


def is_local(registry: str) -> bool:
    host = urlsplit(f"//{registry}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _pool(registry: str, access: Access) -> urllib3.PoolManager:
    context = ssl.create_default_context()
    if access.verify:
        for folder in _CERTIFICATES:
            for path in sorted(Path(folder, registry).glob("*.crt")) if "/" not in registry else ():
                with contextlib.suppress(OSError, ssl.SSLError):
                    context.load_verify_locations(path)
    else:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # it is what somebody asked for
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    options: dict[str, Any] = {"maxsize": CONNECTIONS, "ssl_context": context}
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if proxy and not is_local(registry) and not urllib.request.proxy_bypass(registry):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.name}:{login.password}".encode()).decode()


def _said(answer: Any) -> str:
    try:
        return _said_in(answer.read(_ANSWER_LIMIT))
    except (urllib3.exceptions.HTTPError, OSError):
        return ""


def _said_in(data: bytes) -> str:
    """The errors in an answer (distribution-spec, "Error Codes"), or nothing."""
    try:
        values = json.loads(data)
        found = [f"{error.get('code', '')} {error.get('message', '')}" for error in values["errors"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    text = " ".join("; ".join(found).split())
    return "".join(character for character in text if character.isprintable())[:300]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return f"the name {reason._host!r} is unknown here (is there a network?)"
    if isinstance(reason, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return "no answer in time"
    cause = reason.__cause__ or reason.__context__ or reason
    return getattr(cause, "strerror", None) or " ".join(str(cause).split())[:200]
