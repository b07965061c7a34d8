import errno
import http.server
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import pytest

from processing import video_url
from processing.video_url import VideoFetchError, fetch_video, redact_url


BODY = bytes(range(256)) * 40
PUBLIC, OTHER_PUBLIC = "93.184.215.14", "2606:2800:21f:cb07::1"

REFUSED = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
ACCEPTED = [PUBLIC, OTHER_PUBLIC, "172.32.0.1", "::ffff:8.8.8.8", "64:ff9b::808:808"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `/<route>` by the method `do_<route>`, and keeps what was asked."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers))
        getattr(self, "route_" + self.path.strip("/").partition("?")[0].partition("/")[0], self.route_missing)()

    def answer(self, status=200, body=BODY, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def route_ok(self):
        self.answer()

    def route_missing(self):
        self.answer(404, b"not here")

    def route_forbidden(self):
        self.answer(403, b"")

    def route_broken(self):
        self.answer(500, b"")

    def route_partial(self):
        self.answer(206)

    def route_redirect(self):
        # Hops that are left stand in the path: /redirect/2 leads to /redirect/1, and that to /ok.
        hops = int(self.path.rpartition("/")[2])
        self.answer(302, b"", Location=f"/redirect/{hops - 1}#part" if hops > 1 else "/ok?from=redirect")

    def route_loop(self):
        self.answer(307, b"", Location="/loop")

    def route_away(self):
        self.answer(301, b"", Location=self.server.away)

    def route_unnamed(self):
        self.answer(200, BODY, Content_Length=None)

    def route_endless(self):
        self.answer(200, b"", Content_Length=None)
        try:
            while not self.server.stop.is_set():
                self.wfile.write(BODY)
        except OSError:
            self.server.hung_up.set()

    def route_chunked(self, end=b"0\r\n\r\n"):
        half = len(BODY) // 2
        parts = (b"%x\r\n%s\r\n" % (half, BODY[:half]), b"%x\r\n%s\r\n" % (half, BODY[half:]))
        self.answer(200, b"".join(parts) + end, Content_Length=None, Transfer_Encoding="chunked")

    def route_cutchunks(self):
        self.route_chunked(end=b"400\r\nno")

    def route_short(self):
        self.answer(200, BODY[:100], Content_Length=len(BODY))

    def route_gzip(self):
        self.answer(Content_Encoding="gzip")

    def route_identity(self):
        self.answer(Content_Encoding="identity")

    def route_longer(self):
        # More than it says: the rest is not part of the file.
        self.answer(200, BODY + b"more", Content_Length=len(BODY))

    def route_nonsense(self):
        self.wfile.write(b"what is this?\x1b[31m" * 100 + b"\r\n\r\n")

    def route_hangup(self):
        pass

    def drip(self, data):
        for byte in data:
            if self.server.stop.wait(0.05):
                return
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                self.server.hung_up.set()
                return

    def route_drip(self):
        self.answer(200, b"", Content_Length=len(BODY))
        self.drip(BODY)

    def route_dripheaders(self):
        self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Header: slow\r\n" * 500)

    def route_dripchunk(self):
        self.answer(200, b"", Content_Length=None, Transfer_Encoding="chunked")
        self.drip(b"1;" + b"x" * 5000)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    away = ""

    def __init__(self, address=("127.0.0.1", 0), context=None):
        super().__init__(address, Handler)
        self.requests, self.stop, self.hung_up, self.context = [], threading.Event(), threading.Event(), context

    def finish_request(self, request, client_address):
        if self.context is None:
            return super().finish_request(request, client_address)
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except (ssl.SSLError, ConnectionError):
            pass  # the client refuses the certificate

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


def run_server(**kwargs):
    server = Server(**kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server():
    yield from run_server()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def nothing_left_open(monkeypatch, no_proxy):
    """Every file and socket that the module opens is closed by the end of the test; the tests close what they get."""
    opened = []

    def temporary_file():
        opened.append(tempfile.TemporaryFile())
        return opened[-1]

    class Sockets(video_url._TimedSocket):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            opened.append(self)

        closed = property(lambda self: self.fileno() == -1)

    class TLSSockets(video_url._TimedTLSSocket):
        @classmethod
        def _create(cls, *args, **kwargs):
            opened.append(super()._create(*args, **kwargs))
            return opened[-1]

        closed = property(lambda self: self.fileno() == -1)

    monkeypatch.setattr(video_url, "tempfile", type("Tempfile", (), {"TemporaryFile": staticmethod(temporary_file)}))
    monkeypatch.setattr(video_url, "_TimedSocket", Sockets)
    monkeypatch.setattr(video_url, "_TimedTLSSocket", TLSSockets)
    yield opened
    assert [thing for thing in opened if not thing.closed] == []


@pytest.fixture
def resolve(monkeypatch):
    """Looks names up in a table `{host: [answer, next answer, ...]}`, an answer being a list of addresses."""
    table = {}
    lookups = []

    def getaddrinfo(host, port, *args, **kwargs):
        lookups.append(host)
        answers = table[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    table["lookups"] = lookups
    return table


@pytest.fixture
def connects(monkeypatch, server, nothing_left_open):
    """The addresses connected to; the public ones of the tests are the server's, all others refuse."""
    addresses = []

    def connect(self, address):
        addresses.append(address[0])
        if address[0] not in (PUBLIC, "127.0.0.1"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        socket.socket.connect(self, ("127.0.0.1", server.server_port))

    monkeypatch.setattr(video_url._TimedSocket, "connect", connect)
    return addresses


def fetch(url, max_bytes=1 << 20, timeout_seconds=5.0, allow_private_addresses=True):
    return fetch_video(url, max_bytes, timeout_seconds, allow_private_addresses)


def refusal(url, **kwargs):
    with pytest.raises(VideoFetchError) as caught:
        fetch(url, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("route", ["ok", "unnamed", "chunked", "identity", "longer", "redirect/1", "redirect/5"])
def test_the_file_is_the_body(server, route):
    with fetch(f"{server.url}/{route}") as file:
        assert file.tell() == 0
        assert file.read() == BODY
        assert file.seek(256) == 256 and file.read(2) == b"\x00\x01"
    assert len(server.requests) == (int(route[-1]) + 1 if "redirect" in route else 1)


def test_what_is_asked_for(server):
    fetch(f"{server.url}/ok/a b/ü%20%2F;v=1?q=ä b&sig=a%2Bb+c/=#t=10").close()
    path, headers = server.requests[0]
    assert path == "/ok/a%20b/%C3%BC%20%2F;v=1?q=%C3%A4%20b&sig=a%2Bb+c/="
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"] == "scada-temporal-grounding"
    assert headers["Authorization"] is None


def test_redirect_keeps_its_query_and_drops_its_fragment(server):
    fetch(f"{server.url}/redirect/2").close()
    assert [path for path, _ in server.requests] == ["/redirect/2", "/redirect/1", "/ok?from=redirect"]


def test_redirect_with_other_bytes_than_ascii(server):
    # What a server sends that does not quote: UTF-8, which http.server would not let pass as a str.
    server.away = "/ok/é b".encode().decode("latin-1")
    fetch(f"{server.url}/away").close()
    assert server.requests[1][0] == "/ok/%C3%A9%20b"


def test_password_goes_to_its_own_host_only(server, resolve, connects):
    resolve.update({"one.example": [[PUBLIC]], "two.example": [[PUBLIC]]})
    server.away = "http://two.example/redirect/1"
    fetch("http://ann:p%40ss@one.example/away", allow_private_addresses=False).close()
    # base64("ann:p@ss")
    assert [headers["Authorization"] for _, headers in server.requests] == ["Basic YW5uOnBAc3M=", None, None]
    fetch("http://ann:p%40ss@one.example/redirect/1").close()
    assert server.requests[-1][1]["Authorization"] == "Basic YW5uOnBAc3M="


def test_host_names_beyond_ascii(server, resolve, connects):
    resolve["xn--bcher-kva.example"] = [[PUBLIC]]
    fetch("HTTP://Bücher.example/ok", allow_private_addresses=False).close()
    assert server.requests[0][1]["Host"] == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("url", "came"),
    [
        ("file:///etc/passwd", "'file'"),
        ("ftp://ann:secret@example.com/clip.mp4", "'ftp'"),
        ("data:video/mp4;base64,AAAA", "'data'"),
        ("clip.mp4", "''"),
        ("http:///clip.mp4", "host ''"),
        ("http://ann:secret@exa mple.com/", "'exa mple.com'"),
        ("http://ann:secret@example.com\0.org/", "'example.com\\x00.org'"),
        ("http://ann:secret@example.com:99999/", "invalid host or port"),
        ("http://ann:secret@[::1/", "invalid host or port"),
        ("http://ann:secret@a..b/", "invalid host or port"),
    ],
)
def test_other_urls(url, came, resolve):
    with pytest.raises(ValueError, match="expected http") as caught:
        fetch(url)
    assert came in str(caught.value)
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None
    assert resolve["lookups"] == []


@pytest.mark.parametrize("address", REFUSED)
def test_private_addresses_are_refused(address, resolve, connects):
    resolve["video.example"] = [[PUBLIC, address]]
    message = refusal("http://video.example/ok", allow_private_addresses=False)
    assert f"the host video.example is at {address}, which is not a public address" in message
    assert "allow_private_addresses=True" in message
    assert connects == []


@pytest.mark.parametrize("address", ACCEPTED)
def test_public_addresses_are_tried(address, resolve, connects):
    resolve["video.example"] = [[address, PUBLIC]]
    fetch("http://video.example/ok", allow_private_addresses=False).close()
    assert connects[0] == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0", "[::1]", "[::ffff:127.0.0.1]"])
def test_spellings_of_this_machine_are_refused(host, connects):
    # By the system's own resolver.
    message = refusal(f"http://{host}/ok", allow_private_addresses=False)
    assert "which is not a public address" in message or "was not found" in message
    assert connects == []


def test_second_lookup_does_not_matter(server, resolve, connects):
    resolve["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    fetch("http://rebinding.example/ok", allow_private_addresses=False).close()
    assert connects == [PUBLIC] and resolve["lookups"] == ["rebinding.example"]


def test_rebinding_between_redirects(server, resolve, connects):
    resolve["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    message = refusal("http://rebinding.example/redirect/1", allow_private_addresses=False)
    assert "is at 127.0.0.1" in message
    assert connects == [PUBLIC]


@pytest.mark.parametrize("away", ["http://inside.example/ok", "//inside.example/ok", "http://ann@inside.example:80"])
def test_redirect_to_a_private_address(server, resolve, connects, away):
    resolve.update({"video.example": [[PUBLIC]], "inside.example": [["169.254.169.254"]]})
    server.away = away
    message = refusal("http://video.example/away", allow_private_addresses=False)
    assert "the host inside.example is at 169.254.169.254" in message
    assert connects == [PUBLIC]


@pytest.mark.parametrize("away", ["file:///etc/passwd", "ftp://video.example/clip.mp4", "http://[::1"])
def test_redirect_to_another_kind_of_url(server, away):
    server.away = away
    assert "redirects to an invalid URL: " in refusal(f"{server.url}/away")


@pytest.mark.parametrize("route", ["loop", "redirect/6"])
def test_too_many_redirects(server, route):
    assert "redirects more than 5 times" in refusal(f"{server.url}/{route}")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        ("missing", "returned HTTP 404 Not Found, expected 200 OK"),
        ("forbidden", "HTTP 403 Forbidden"),
        ("broken", "HTTP 500 Internal Server Error"),
        ("partial", "HTTP 206 Partial Content"),
        ("gzip", "content encoding 'gzip'"),
        ("short", f"sent only 100 of {len(BODY)} bytes"),
        ("cutchunks", "sent only a part of the file"),
        ("nonsense", "failed (BadStatusLine)"),
        ("hangup", "failed (Remote end closed connection without response)"),
    ],
)
def test_answers_that_are_refused(server, route, reason):
    assert reason in refusal(f"{server.url}/{route}")


@pytest.mark.parametrize("route", ["ok", "unnamed", "chunked"])
def test_size_limit(server, route):
    fetch(f"{server.url}/{route}", max_bytes=len(BODY)).close()
    message = refusal(f"{server.url}/{route}", max_bytes=len(BODY) - 1)
    assert f"more than the limit of {len(BODY) - 1} bytes" in message
    assert (f"the file has {len(BODY)} bytes" in message) == (route == "ok")


def test_stated_size_is_refused_before_anything_is_written(server, nothing_left_open):
    refusal(f"{server.url}/ok", max_bytes=5)
    assert not any(hasattr(thing, "write") for thing in nothing_left_open)


def test_endless_body(server):
    assert "more than the limit of 3000000 bytes" in refusal(f"{server.url}/endless", max_bytes=3_000_000)
    assert server.hung_up.wait(5)


@pytest.mark.parametrize("route", ["drip", "dripheaders", "dripchunk"])
def test_time_limit(server, route):
    begin_seconds = time.monotonic()
    assert "takes longer than the limit of 0.3 s" in refusal(f"{server.url}/{route}", timeout_seconds=0.3)
    assert 0.3 <= time.monotonic() - begin_seconds < 1.5
    assert server.hung_up.wait(5)


def test_time_runs_on_over_redirects(server, monkeypatch):
    answer = Handler.answer

    def slow_answer(self, *args, **kwargs):
        time.sleep(0.15)
        answer(self, *args, **kwargs)

    monkeypatch.setattr(Handler, "answer", slow_answer)
    assert "takes longer than the limit of 0.4 s" in refusal(f"{server.url}/redirect/5", timeout_seconds=0.4)
    assert len(server.requests) <= 4


def test_server_that_never_answers():
    # Connections to it are made by the system, and never taken up.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert "takes longer than the limit of 0.2 s" in refusal(f"http://127.0.0.1:{port}/", timeout_seconds=0.2)
        assert "takes longer than the limit of 0.2 s" in refusal(f"https://127.0.0.1:{port}/", timeout_seconds=0.2)


def test_address_that_never_answers_leaves_time_for_the_next(server, resolve, connects, monkeypatch):
    resolve["video.example"] = [[OTHER_PUBLIC, PUBLIC]]
    first = []
    connect = video_url._TimedSocket.connect

    def slow_connect(self, address):
        if address[0] == OTHER_PUBLIC:
            first.append(self.gettimeout())
            raise TimeoutError("timed out")
        connect(self, address)

    monkeypatch.setattr(video_url._TimedSocket, "connect", slow_connect)
    fetch("http://video.example/ok", timeout_seconds=8).close()
    assert 3 < first[0] <= 4


def test_no_limit_of_time(server):
    fetch(f"{server.url}/ok", timeout_seconds=float("inf")).close()


def test_host_that_is_not_there(resolve, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    resolve["video.example"] = [["127.0.0.1"]]
    assert "the connection to the host video.example failed ([Errno" in refusal(f"http://video.example:{port}/ok")

    def getaddrinfo(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert "the host video.example was not found (Name or service" in refusal("http://video.example/ok")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert "the proxy of the environment is ignored" in refusal("http://video.example/ok")


def test_proxy_is_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    fetch(f"{server.url}/ok").close()


def test_full_disk_is_no_fetch_error(server, monkeypatch, nothing_left_open):
    make = video_url.tempfile.TemporaryFile

    def full_file():
        file = make()

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *args):
                file.close()

            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr(video_url.tempfile, "TemporaryFile", staticmethod(full_file))
    with pytest.raises(OSError, match="No space left"):
        fetch(f"{server.url}/ok")
    assert len(nothing_left_open) == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs the command openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    command += " -addext subjectAltName=DNS:video.example -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    names = []
    context.sni_callback = lambda sock, name, context: names.append(name)
    for server in run_server(context=context):
        server.names = names
        yield server


def test_https(tls_server, certificate, resolve, monkeypatch):
    resolve.update({"video.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]})
    url = f"https://video.example:{tls_server.server_port}"
    message = refusal(f"{url}/ok")
    assert "the certificate of the host video.example is invalid (self" in message
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    with fetch(f"{url}/redirect/1") as file:
        assert file.read() == BODY
    assert set(tls_server.names) == {"video.example"}
    assert tls_server.requests[-1][1]["Host"] == f"video.example:{tls_server.server_port}"
    assert "Hostname mismatch" in refusal(f"https://other.example:{tls_server.server_port}/ok")
    assert "takes longer than the limit of 0.4 s" in refusal(f"{url}/drip", timeout_seconds=0.4)
    assert "sent only 100 of " in refusal(f"{url}/short")


def test_https_to_a_server_without(server):
    assert "the connection to the host 127.0.0.1 failed ([SSL" in refusal(f"https{server.url[4:]}/ok")


def test_redirect_from_https_to_http(tls_server, server, certificate, resolve, monkeypatch):
    resolve.update({"video.example": [["127.0.0.1"]], "127.0.0.1": [["127.0.0.1"]]})
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    tls_server.away = f"{server.url}/ok"
    fetch(f"https://video.example:{tls_server.server_port}/away").close()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("https://example.com/a@b?c=d@e", "https://example.com/a@b?c=d@e"),
        ("https://ann:se:c@ret@example.com/a@b", "https://***@example.com/a@b"),
        ("//ann@example.com", "//***@example.com"),
    ],
)
def test_redact_url(url, redacted):
    assert redact_url(url) == redacted
