"""
Download of videos from untrusted URLs.

Design choices:
- Python's `http.client` downloads the complete file once. No dependency has a time limit for a whole download.
  Libraries that can connect to a checked address are not direct dependencies of this package.
- The host name is resolved once, and the connection uses the checked address. A second lookup could return another
  address (DNS rebinding).
- Proxies from the environment are ignored, because a proxy resolves names itself and prevents the check. Behind a
  proxy, download videos by other means and pass the files.
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
# Reserved characters of RFC 3986, and the percent sign of encoded characters.
URL_SIGNS = "!#$%&'()*+,/:;=?@[]~"

# Public unicast addresses (RFC 4291, section 2.4, and IANA's registry).
PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
# A gateway translates these addresses to the IPv4 address in the last four bytes (RFC 6052).
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Addresses that `is_global` accepts in Python 3.11: protocol assignments, with the metadata service of one cloud;
# Azure's internal services; and 6to4, deprecated by RFC 7526, which can contain any IPv4 address.
NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "2002::/16")))


class VideoFetchError(RuntimeError):
    """Error of a failed download. The message is a clause that fits into a longer sentence."""


class VideoFetchLimitError(VideoFetchError):
    """Error of a download that exceeds the size or time limit."""


def fetch_video(url: str, max_bytes: int, timeout_seconds: float, allow_private_addresses: bool = False) -> BinaryIO:
    """
    Download a video into a temporary file.

    The function follows up to five redirects and checks each one like the original URL. Like curl and requests, it
    also follows redirects from https to http. A user name and password in the URL go only to the host of that URL
    (RFC 7617), not to a redirect target. Proxies from the environment are ignored.

    Args:
        url (`str`): An http or https URL.
        max_bytes (`int`): Maximum file size.
        timeout_seconds (`float`): Time limit in seconds for the connection, the redirects and the complete download.
            The name lookup has its own limit of the system; the time is checked after it.
        allow_private_addresses (`bool`, *optional*, defaults to `False`): Whether to connect to private addresses,
            such as addresses of this machine and its network. Keep `False` for untrusted URLs.

    Returns:
        `BinaryIO`: Temporary file without a name, opened at the start, and deleted on close.

    Raises:
        `ValueError`: If `url` is not an http(s) URL.
        `VideoFetchError`: If the host is not found, has a private address, or is unreachable; if its certificate is
            invalid; or if the response is an error, compressed or truncated. [`VideoFetchLimitError`] if the file
            exceeds `max_bytes` or the download exceeds `timeout_seconds`.
        `OSError`: If writing the temporary file fails.
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
            # `http.client` decodes headers as latin-1, even if a server sends another encoding.
            location = quote(location.strip().encode("latin-1"), safe=URL_SIGNS)
        try:
            parts, host, port = _split_url(urljoin(parts.geturl(), location))
        except ValueError as error:
            reason = f"the host {host} redirects to an invalid URL: {error}"
            raise VideoFetchError(reason.rstrip(".")) from error
    raise VideoFetchError(f"the URL redirects more than {MAX_REDIRECTS} times; pass the final URL")


def is_url(name: str) -> bool:
    """Return whether a name is an http or https URL instead of a path."""
    return name.lower().startswith(("http://", "https://"))


def redact_url(url: str) -> str:
    """
    Replace the user name and password of a URL, for messages and logs.

    Args:
        url (`str`): Any URL.

    Returns:
        `str`: The URL, with `***` instead of the user name and password.

    Example:

    ```python
    >>> redact_url("https://ann:secret@example.com/clip.mp4")
    'https://***@example.com/clip.mp4'

    ```
    """
    return re.sub(r"(?<=//)[^/?#]*@", "***@", url, count=1)


def _split_url(url: str) -> tuple[SplitResult, str, int]:
    """Return the parts of a URL, its host in ASCII (RFC 3490) and its port. Errors never contain a password."""
    expected = "expected http(s)://host/path or http(s)://host:port/path"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError:
        raise ValueError(f"Received a URL with an invalid host or port, {expected}.") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"Received a URL that begins with {parts.scheme[:20]!r}, {expected}.")
    if not re.fullmatch(r"[\w.:%-]+", host, re.ASCII):
        raise ValueError(f"Received a URL with the host {host!r}, {expected}.")
    return parts, host, DEFAULT_PORTS[parts.scheme] if port is None else port


def _headers(parts: SplitResult) -> dict[str, str]:
    # With "close", the server ends a body of unknown length by closing the connection.
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    return headers


def _connect(host: str, port: int, deadline_seconds: float, allow_private_addresses: bool) -> "_TimedSocket":
    """Resolve a host once, check all of its addresses, and connect to the first one that responds."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not allow_private_addresses and not _is_public(str(address[0])):
            raise VideoFetchError(
                f"the host {host} is at {address[0]}, which is not a public address; to allow it, download the file "
                "yourself or pass `ReadLimits(allow_private_addresses=True)`"
            )
    failure = OSError("the host has no address")
    for index, (family, kind, protocol, _, address) in enumerate(found):
        with ExitStack() as stack:
            try:
                sock = stack.enter_context(_TimedSocket(family, kind, protocol))
                # Leaves time for the other addresses if one never responds.
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
    """Write the body of a response to a temporary file."""
    if response.status != 200:
        meaning = http.client.responses.get(response.status, "")
        raise VideoFetchError(
            f"the host {host} returned HTTP {response.status} {meaning}, expected 200 OK; check the URL, and "
            "whether it requires a login"
        )
    encoding = response.headers.get("Content-Encoding", "").strip() or "identity"
    if encoding.lower() != "identity":
        raise VideoFetchError(
            f"the host {host} uses the content encoding {encoding[:20]!r}, expected no encoding; download and decode "
            "the file yourself"
        )
    advice = f"more than the limit of {max_bytes} bytes; raise the limit, or download the file yourself"
    stated_bytes = response.length
    if stated_bytes is not None and stated_bytes > max_bytes:
        raise VideoFetchLimitError(f"the file has {stated_bytes} bytes, {advice}")

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
                raise VideoFetchLimitError(f"the file has {advice}")
            file.write(chunk)
        if stated_bytes is not None and num_bytes < stated_bytes:
            raise VideoFetchError(f"the host {host} sent only {num_bytes} of {stated_bytes} bytes; try again")
        file.seek(0)
        stack.pop_all()
        return file


@contextmanager
def _as_fetch_errors(scheme: str, host: str, timeout_seconds: float) -> Iterator[None]:
    """Convert network errors to [`VideoFetchError`]. Do not wrap writes to the temporary file."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        # A timeout set on the socket has no errno; a timeout of the system has one.
        kind = VideoFetchError
        if isinstance(error, TimeoutError) and error.errno is None:
            kind = VideoFetchLimitError
            reason = (
                f"the host {host} takes longer than the limit of {timeout_seconds:g} s; raise the limit, or download "
                "the file yourself"
            )
        elif isinstance(error, socket.gaierror):
            reason = f"the host {host} was not found ({error.strerror}); check the URL and the network"
        elif isinstance(error, ssl.SSLCertVerificationError):
            reason = f"the certificate of the host {host} is invalid ({error.verify_message})"
        elif isinstance(error, http.client.IncompleteRead):
            reason = f"the host {host} sent only a part of the file; try again"
        else:
            # Messages of `http.client` quote the host, at any length.
            what = str(error) if isinstance(error, OSError) else type(error).__name__
            reason = f"the connection to the host {host} failed ({what}); check the URL and the network"
        if scheme in urllib.request.getproxies():
            reason += " (the proxy of the environment is ignored)"
        raise kind(reason) from error


def _seconds_left(deadline_seconds: float) -> float:
    left_seconds = deadline_seconds - time.monotonic()
    if left_seconds <= 0:
        raise TimeoutError
    # Sockets reject times of several centuries.
    return min(left_seconds, 1e6)


class _TimedSocket(socket.socket):
    """Socket with one deadline (`time.monotonic()`) for all received data, instead of a timeout per read."""

    deadline_seconds = math.inf

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_seconds_left(self.deadline_seconds))
        return super().recv_into(*args, **kwargs)


class _TimedTLSSocket(_TimedSocket, ssl.SSLSocket):
    """Encrypted variant of [`_TimedSocket`]."""
