"""
Downloading videos from URLs that may come from strangers.

Design choices:
- A URL is downloaded once, as a whole, by Python's own `http.client`: no library among the dependencies has a limit of
  time for a whole download, and the ones that could be taught to connect to an address that was checked are not
  dependencies of this package itself.
- A name is looked up once, and what is connected to is the address that was checked: a second lookup could give
  another one (DNS rebinding).
- The proxies that the environment names are not used: a proxy looks names up by itself, so nothing could be checked.
  Who is behind one downloads videos by other means, and passes the files.
"""

import base64
import http.client
import ipaddress
import math
import re
import socket
import ssl
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit


USER_AGENT = "scada-temporal-grounding"
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 20

DEFAULT_PORTS = {"http": 80, "https": 443}
# What RFC 3986 reserves, and the sign of what is percent-encoded already.
URL_SIGNS = "!#$%&'()*+,/:;=?@[]~"

# All that is assigned to single hosts on the public internet (RFC 4291, section 2.4, and IANA's registry).
PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
# Addresses that a gateway turns into the IPv4 address in their last four bytes (RFC 6052).
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What `is_global` lets pass, in Python 3.11: protocol assignments, where one cloud has its metadata; Azure's own
# services to its machines; and 6to4, given up by RFC 7526, which can hide any IPv4 address.
NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "2002::/16")))


class VideoFetchError(RuntimeError):
    """A video that cannot be downloaded as asked. The message is the reason, to stand within a sentence."""


class VideoFetchLimitError(VideoFetchError):
    """A video that is larger, or takes longer, than is allowed."""


def fetch_video(url: str, max_bytes: int, timeout_seconds: float, allow_private_addresses: bool = False) -> BinaryIO:
    """
    Download a video into a temporary file.

    Up to five redirects are followed, each checked as the URL itself; like curl and requests, also from https to http.
    A user name and password in a URL are sent to its host (RFC 7617), not to one that it redirects to. The proxies
    that the environment names are not used.

    Args:
        url (`str`): An http or https URL.
        max_bytes (`int`): Size of the largest file that is accepted.
        timeout_seconds (`float`): Time in seconds for all of it: to connect, to be redirected, and to get the last
            byte. Only looking a name up has the system's own limit, after which the time is checked.
        allow_private_addresses (`bool`, *optional*, defaults to `False`): Whether to connect to addresses that are not
            public, such as those of this machine and its network. To be left off where URLs come from strangers.

    Returns:
        `BinaryIO`: The file, opened at its beginning. It has no name, and is gone once closed.

    Raises:
        `ValueError`: If `url` is no http(s) URL.
        `VideoFetchError`: If the host is not found, has an address that is not public, or cannot be reached; if its
            certificate is not valid; if its answer is no success, is compressed or cut short; or, as
            [`VideoFetchLimitError`], if the file is larger than `max_bytes` or takes longer than `timeout_seconds`.
        `OSError`: If the temporary file cannot be written.
    """
    deadline_seconds = time.monotonic() + timeout_seconds
    parts, host, port = _split_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        with ExitStack() as stack:
            with _as_fetch_errors(parts.scheme, host, timeout_seconds):
                sock = stack.enter_context(_connect(host, port, deadline_seconds, allow_private_addresses))
                connection = http.client.HTTPConnection(host, port)
                if parts.scheme == "https":
                    context = ssl.create_default_context()
                    context.set_alpn_protocols(["http/1.1"])
                    context.sslsocket_class = _TimedTLSSocket
                    sock.settimeout(_seconds_left(deadline_seconds))
                    wrapped = context.wrap_socket(sock, server_hostname=host)
                    sock = stack.enter_context(cast(_TimedTLSSocket, wrapped))
                    connection = http.client.HTTPSConnection(host, port, context=context)
                sock.deadline_seconds = deadline_seconds
                sock.settimeout(_seconds_left(deadline_seconds))
                connection.sock = sock
                target = quote(parts.path or "/", safe=URL_SIGNS)
                if parts.query:
                    target += "?" + quote(parts.query, safe=URL_SIGNS)
                connection.request("GET", target, headers=_headers(parts))
                response = stack.enter_context(connection.getresponse())

            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return _save(response, parts.scheme, host, max_bytes, timeout_seconds)
            # Headers are read as latin-1, whatever the bytes are that a careless server sends.
            location = quote(location.strip().encode("latin-1"), safe=URL_SIGNS)
        try:
            parts, host, port = _split_url(urljoin(parts.geturl(), location))
        except ValueError as error:
            reason = f"the host {host} redirects to a URL that cannot be followed: {error}"
            raise VideoFetchError(reason.rstrip(".")) from error
    raise VideoFetchError(f"it is redirected more than {MAX_REDIRECTS} times; pass the URL that it ends at")


def is_url(name: str) -> bool:
    """Whether a name is an http or https URL, and no path."""
    return name.lower().startswith(("http://", "https://"))


def redact_url(url: str) -> str:
    """
    A URL as it may stand in messages and logs.

    Args:
        url (`str`): Any URL.

    Returns:
        `str`: The URL, with `***` for a user name and password in it.

    Example:

    ```python
    >>> redact_url("https://ann:secret@example.com/clip.mp4")
    'https://***@example.com/clip.mp4'

    ```
    """
    return re.sub(r"(?<=//)[^/?#]*@", "***@", url, count=1)


def _split_url(url: str) -> tuple[SplitResult, str, int]:
    """The parts of a URL, its host in ASCII (RFC 3490) and its port. No error repeats what may hold a password."""
    expected = "expected http(s)://host/path or http(s)://host:port/path"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError:
        raise ValueError(f"Received a URL whose host or port cannot be read, {expected}.") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"Received a URL that begins with {parts.scheme[:20]!r}, {expected}.")
    if not re.fullmatch(r"[\w.:%-]+", host, re.ASCII):
        raise ValueError(f"Received a URL with the host {host!r}, {expected}.")
    return parts, host, DEFAULT_PORTS[parts.scheme] if port is None else port


def _headers(parts: SplitResult) -> dict[str, str]:
    # With "close", the server ends the connection after a body that does not say how long it is.
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    return headers


def _connect(host: str, port: int, deadline_seconds: float, allow_private_addresses: bool) -> "_TimedSocket":
    """Look a host up once, check all of its addresses, and connect to the first of them that answers."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not allow_private_addresses and not _is_public(str(address[0])):
            raise VideoFetchError(
                f"the host {host} is at {address[0]}, which is no public address; to allow that, download it yourself "
                "or set allow_private_addresses=True (of `ReadLimits`)"
            )
    failure = OSError("it has no address")
    for index, (family, kind, protocol, _, address) in enumerate(found):
        with ExitStack() as stack:
            try:
                sock = stack.enter_context(_TimedSocket(family, kind, protocol))
                # An address that never answers leaves time for the others.
                sock.settimeout(_seconds_left(deadline_seconds) / (len(found) - index))
                sock.connect(address)
            except OSError as error:
                failure = error
            else:
                stack.pop_all()
                return sock
    raise failure


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return _is_public(str(ipaddress.IPv4Address(address.packed[-4:])))
        if address.ipv4_mapped is not None:
            return _is_public(str(address.ipv4_mapped))
        if address not in PUBLIC_IPV6:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)


def _save(
    response: http.client.HTTPResponse, scheme: str, host: str, max_bytes: int, timeout_seconds: float
) -> BinaryIO:
    """Read an answer's body into a temporary file."""
    if response.status != 200:
        meaning = http.client.responses.get(response.status, "")
        raise VideoFetchError(
            f"the host {host} answers with HTTP {response.status} {meaning}, expected 200 OK; check the URL, and "
            "whether it needs a login"
        )
    encoding = response.headers.get("Content-Encoding", "").strip() or "identity"
    if encoding.lower() != "identity":
        raise VideoFetchError(
            f"the host {host} sends it with the content encoding {encoding[:20]!r}, expected the file as it is; "
            "download and unpack it yourself"
        )
    advice = f"more than the {max_bytes} bytes that are allowed; allow more, or download it yourself"
    stated_bytes = response.length
    if stated_bytes is not None and stated_bytes > max_bytes:
        raise VideoFetchLimitError(f"it has {stated_bytes} bytes, {advice}")

    with ExitStack() as stack:
        file = stack.enter_context(cast(BinaryIO, tempfile.TemporaryFile()))
        num_bytes = 0
        while True:
            with _as_fetch_errors(scheme, host, timeout_seconds):
                chunk = response.read(CHUNK_BYTES)
            if not chunk:
                break
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise VideoFetchLimitError(f"it has {advice}")
            file.write(chunk)
        if stated_bytes is not None and num_bytes < stated_bytes:
            raise VideoFetchError(f"the host {host} sent {num_bytes} of its {stated_bytes} bytes; try again")
        file.seek(0)
        stack.pop_all()
        return file


@contextmanager
def _as_fetch_errors(scheme: str, host: str, timeout_seconds: float) -> Iterator[None]:
    """Turn the errors of networks into [`VideoFetchError`]; the temporary file's are not to pass through here."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        # The time that a socket is given runs out without an errno; what the system itself gives up on has one.
        kind = VideoFetchError
        if isinstance(error, TimeoutError) and error.errno is None:
            kind = VideoFetchLimitError
            reason = (
                f"the host {host} takes longer than the {timeout_seconds:g} s that are allowed; allow more, or "
                "download it yourself"
            )
        elif isinstance(error, socket.gaierror):
            reason = f"the host {host} is not found ({error.strerror}); check the URL and the network"
        elif isinstance(error, ssl.SSLCertVerificationError):
            reason = f"the certificate of the host {host} is not valid for it ({error.verify_message})"
        elif isinstance(error, http.client.IncompleteRead):
            reason = f"the host {host} sent only a part of it; try again"
        else:
            # What http.client complains of is quoted from the host, at any length.
            what = str(error) if isinstance(error, OSError) else type(error).__name__
            reason = f"the connection to the host {host} failed ({what}); check the URL and the network"
        if scheme in urllib.request.getproxies():
            reason += " (the environment names a proxy, which is not used)"
        raise kind(reason) from error


def _seconds_left(deadline_seconds: float) -> float:
    left_seconds = deadline_seconds - time.monotonic()
    if left_seconds <= 0:
        raise TimeoutError
    # Sockets refuse times beyond some centuries.
    return min(left_seconds, 1e6)


class _TimedSocket(socket.socket):
    """A socket that waits for what it is sent until a moment, of `time.monotonic()`, not so long for each piece."""

    deadline_seconds = math.inf

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_seconds_left(self.deadline_seconds))
        return super().recv_into(*args, **kwargs)


class _TimedTLSSocket(_TimedSocket, ssl.SSLSocket):
    """As [`_TimedSocket`], encrypted."""
