"""A small web server that segments the pictures it is sent.

For one person and their browser, on the standard library alone. It takes
nothing from a request but the bytes of a picture and two words out of fixed
lists: no path, no name, no option of the network. Sizes are bounded before
anything is read or decoded, slow senders are cut off, one forward runs at a
time, and requests that name another host (a foreign page that points its name
at this machine) or come from another site are refused.
"""
import base64
import hashlib
import ipaddress
import json
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from utils.console import notice, warn
from utils.errors import ConfigError, UserError, first_line

# Only what browsers show. Anything else, PostScript say, never reaches a decoder.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Limits:
    """upload: bytes of one picture. seconds: in which a request must have arrived. waiting:
    requests that may queue for the network. connections: open at one time."""

    upload: int = 20_000_000
    seconds: float = 20.0
    waiting: int = 4
    connections: int = 32


class Refused(Exception):
    """A request that gets no picture: HTTP status and what to tell the sender."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class DemoServer(ThreadingHTTPServer):
    """Serves `page` at /, `about` at /about and segment(path, mode, rule) at /segment.

    page: HTML with one inline <script> and one inline <style>.
    about: what /about gives as JSON; its "modes" and "rules" are the words a request may use.
    segment: called with (path, mode, rule) by one thread at a time, the path being that of a
        temporary file of at most `limits.upload` bytes; gives what is answered as JSON,
        "height" and "width" among it. UserError says that it is no good picture.
    port 0 takes any free one; `url` says where it is.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, page: str, about: dict, segment: Callable,
                 limits: Limits = Limits()):
        self.page, self.about, self.segment, self.limits = page, about, segment, limits
        self.policy = _content_policy(page)
        self.forward = threading.Lock()
        self.waiting = threading.BoundedSemaphore(limits.waiting + 1)       # and the one at work
        self.open = threading.BoundedSemaphore(limits.connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}, port {port}: "
                              f"{getattr(error, 'strerror', None) or error}", "--host, --port",
                              "take another port; 0 finds a free one") from None
        self.host = f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_port}/"

    def knows(self, host: str) -> bool:
        """Whether a Host header means this server and not a name somebody pointed at it."""
        name = host.lower().removesuffix(f":{self.server_port}")
        if name in LOCAL_NAMES or name == self.host.lower():
            return True
        # Bound to every address, it cannot know its own; an address at least is no foreign name.
        return self.host in ("0.0.0.0", "[::]") and _is_address(name.strip("[]"))

    def process_request(self, request, client_address):
        if not self.open.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.open.release()

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):      # a browser that went away is no news
            warn(f"a request failed: {type(error).__name__}: {error}")

    def close(self):
        """Take no more requests and let the forward that runs come to its end."""
        self.server_close()
        self.forward.acquire(timeout=60)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "Segwright", ""

    def setup(self):
        self.timeout = self.server.limits.seconds
        super().setup()
        # A timeout per read would let a sender drip one byte after the other.
        self.deadline = threading.Timer(self.server.limits.seconds, self._cut_off)
        self.deadline.daemon = True
        self.deadline.start()

    def finish(self):
        self.deadline.cancel()
        super().finish()

    def do_GET(self):
        with _Answering(self):
            self._require_host()
            self.deadline.cancel()
            if self.path == "/":
                self._answer(200, self.server.page.encode(), "text/html; charset=utf-8")
            elif self.path == "/about":
                self._json(200, self.server.about)
            else:
                raise Refused(404, "there is nothing here")

    def do_POST(self):
        with _Answering(self):
            self._require_host()
            path, query = urlsplit(self.path)[2:4]
            if path != "/segment":
                raise Refused(404, "there is nothing here")
            mode, rule = self._choice(query, "mode", "modes"), self._choice(query, "rule", "rules")
            with tempfile.NamedTemporaryFile(prefix="segwright-") as file:
                self._receive(file)
                self._json(200, self._segment(file.name, mode, rule))

    def _segment(self, path, mode, rule):
        server = self.server
        if not server.waiting.acquire(blocking=False):
            raise Refused(503, "too many pictures are waiting; try again in a moment")
        try:
            with server.forward:
                start = time.perf_counter()
                result = server.segment(path, mode, rule)
                result["seconds"] = round(time.perf_counter() - start, 3)
        except UserError as error:
            raise Refused(422, error.what) from None
        except (RuntimeError, MemoryError) as error:
            reason = "out of memory" if isinstance(error, MemoryError) else first_line(error)
            raise Refused(500, f"the network fails on it: {reason}") from None
        finally:
            server.waiting.release()
        notice(f"segmented {result['height']}x{result['width']}, mode {mode}, rule {rule}: "
               f"{result['seconds']} s")
        return result

    def _require_host(self):
        host = self.headers.get("Host", "")
        if not self.server.knows(host):
            raise Refused(403, "this server does not go by that name")
        origin = self.headers.get("Origin")
        if origin is not None and (not origin.startswith("http://")
                                   or not self.server.knows(origin.removeprefix("http://"))):
            raise Refused(403, "requests of other sites are not answered")

    def _choice(self, query, name, known):
        try:
            fields = parse_qs(query, max_num_fields=10)
        except ValueError:
            raise Refused(400, "the address holds too much") from None
        found = fields.get(name, [self.server.about[known][0]])
        if found[-1] not in self.server.about[known]:
            raise Refused(400, f"{name} must be one of {', '.join(self.server.about[known])}")
        return found[-1]

    def _receive(self, file):
        """The body, into `file`; its length and first bytes are judged before the rest is read."""
        length, limits = self.headers.get("Content-Length", ""), self.server.limits
        if not re.fullmatch(r"[0-9]{1,18}", length) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "a Content-Length is needed")
        left = int(length)
        if left > limits.upload:
            raise Refused(413, f"the file has {left} bytes; at most {limits.upload} are taken")
        first = True
        while left:
            block = self.rfile.read(min(left, 1 << 16))
            if not block:
                raise Refused(408, "the picture did not arrive in time")
            if first and not block.startswith(SIGNATURES):
                raise Refused(415, "not a PNG, JPEG, WebP, GIF or BMP picture")
            first = False
            file.write(block)
            left -= len(block)
        if first:
            raise Refused(415, "the file is empty")
        self.deadline.cancel()
        file.flush()

    def _json(self, status, value):
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status, body, kind):
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))),
                            ("Content-Security-Policy", self.server.policy),
                            ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
                            ("Referrer-Policy", "no-referrer")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _cut_off(self):
        try:
            self.connection.shutdown(socket.SHUT_RD)
        except OSError:
            pass                    # it has closed by itself

    def log_message(self, *_):
        """Nothing: what was segmented is told by _segment, the rest is of no interest."""


class _Answering:
    """Turns Refused into an answer, and reads on a little so that the sender gets to see it."""

    def __init__(self, handler):
        self.handler = handler

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, Refused):
            return False
        handler = self.handler
        handler._json(error.status, {"error": str(error)})
        handler.wfile.flush()
        # Closing on unread bytes would reset the connection under the answer.
        handler.connection.shutdown(socket.SHUT_WR)
        handler.connection.settimeout(1)
        end = time.monotonic() + 2
        try:
            while time.monotonic() < end and handler.rfile.read1(1 << 16):
                pass
        except OSError:
            pass
        return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    return host == "localhost" or _is_address(host) and ipaddress.ip_address(host).is_loopback


def data_url(picture: bytes) -> str:
    """A PNG as a text that an <img> shows."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _content_policy(page):
    """The page may run its own script and style and talk to this server, nothing else."""
    def hashes(tag):
        for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            yield f"'sha256-{digest}'"
    return ("default-src 'none'; connect-src 'self'; img-src blob: data:; "
            f"script-src {' '.join(hashes('script'))}; style-src {' '.join(hashes('style'))}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def _is_address(text):
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
