"""A small web server that segments the images that it receives.

It is meant for one person and their browser, and needs only the standard library. A request
contains nothing but the bytes of an image and two words from fixed lists: no path, no name, no
option of the network. Sizes are limited before anything is read or decoded, slow senders are
disconnected, and one forward pass runs at a time. Requests from other sites are refused, and so are
requests for another host name: a foreign page may point its name to this machine (DNS rebinding).
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from utils.cli.console import notice, warn
from utils.errors import ConfigError, UserError, first_line

# PNG, JPEG, GIF, BMP, WebP, TIFF (also above 4 GB), arrays of NumPy. Files of other formats (such
# as PostScript) reach no decoder.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*",
              b"II+\0", b"MM\0+", b"\x93NUMPY")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    upload: bytes of one image. seconds: time for receiving a request. waiting: requests that may
    wait for the network. connections: connections that may be open at once.
    """

    upload: int = 20_000_000
    seconds: float = 20.0
    waiting: int = 4
    connections: int = 32


DEFAULT_LIMITS = Limits()


class Refused(Exception):
    """A request that is refused, with the HTTP status and the reason for the sender."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class DemoServer(ThreadingHTTPServer):
    """Serves `page` at /, `about` at /about, `examples` at /example/0, /example/1, ..., and
    segment(path, mode, rule) at /segment.

    port: 0 takes any free one; `url` contains the port that was taken.
    page: HTML with one inline <script> and one inline <style>.
    about: the JSON answer of /about; its "modes" and "rules" are the words that a request may use.
    segment: called with (path, mode, rule) by one thread at a time; path is a temporary file of
        at most `limits.upload` bytes. Returns the JSON answer, which contains "height" and
        "width". Raises UserError if the file is not a valid image.
    examples: files to try.
    Raises ConfigError if the server cannot listen on this host and port.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, page: str, about: dict,
                 segment: Callable[[str, str, str], dict], limits: Limits = DEFAULT_LIMITS,
                 examples: Sequence[bytes] = ()):
        self.examples = {f"/example/{number}": file for number, file in enumerate(examples)}
        self.page, self.about, self.segment, self.limits = page, about, segment, limits
        self.policy = _content_policy(page)
        self.forward = threading.Lock()
        self.places = threading.BoundedSemaphore(limits.waiting + 1)    # and the one that runs
        self.connections = threading.BoundedSemaphore(limits.connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}, port {port}: "
                              f"{getattr(error, 'strerror', None) or error}", "--host, --port",
                              "choose another port; 0 takes a free one") from None
        self.host = f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        """Returns the address of the page."""
        return f"http://{self.host}:{self.server_port}/"

    def is_own_name(self, host: str) -> bool:
        """Returns whether a Host header names this server, not a foreign name that points to it."""
        name = host.lower().removesuffix(f":{self.server_port}")
        if name in LOCAL_NAMES or name == self.host.lower():
            return True
        # A server on all addresses cannot list them; but an IP address is never a foreign name.
        return self.host in ("0.0.0.0", "[::]") and _is_address(name.strip("[]"))

    def process_request(self, request: Any, client_address: Any):
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):      # an OSError means that the browser disconnected
            warn(f"a request failed: {type(error).__name__}: {error}")

    def close(self):
        """Accept no more requests and wait for the running forward pass."""
        self.server_close()
        self.forward.acquire(timeout=60)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "Segwright", ""
    server: DemoServer

    def setup(self):
        super().setup()
        self.connection.settimeout(self.server.limits.seconds)
        # The timeout is per read, so a sender of single bytes would never exceed it.
        self.deadline = threading.Timer(self.server.limits.seconds, self._close_input)
        self.deadline.daemon = True
        self.deadline.start()

    def finish(self):
        self.deadline.cancel()
        super().finish()

    def do_GET(self):
        with self._answering_refusals():
            self._require_own_host()
            self.deadline.cancel()
            if self.path == "/":
                self._answer(200, self.server.page.encode(), "text/html; charset=utf-8")
            elif self.path == "/about":
                self._json(200, self.server.about)
            elif self.path in self.server.examples:
                file = self.server.examples[self.path]
                self._answer(200, file, "image/png" if file.startswith(SIGNATURES[0])
                             else "application/octet-stream")
            else:
                raise Refused(404, "not found")

    def do_POST(self):
        with self._answering_refusals():
            self._require_own_host()
            path, query = urlsplit(self.path)[2:4]
            if path != "/segment":
                raise Refused(404, "not found")
            mode, rule = self._choice(query, "mode", "modes"), self._choice(query, "rule", "rules")
            with self._uploaded() as path:
                answer = self._segment(path, mode, rule)
            self._json(200, answer)

    @contextmanager
    def _uploaded(self) -> Iterator[str]:
        """The path of a temporary file with the body, for the block.

        Where the folder of temporary files is full or gone, the sender and the log are told.
        """
        with ExitStack() as stack:
            try:
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="segwright-",
                                                                       buffering=0))
            except OSError as error:
                raise _no_room(error) from None
            self._receive(file)
            yield file.name

    def _segment(self, path, mode, rule):
        server = self.server
        if not server.places.acquire(blocking=False):
            raise Refused(503, "too many images are waiting; try again in a moment")
        try:
            with server.forward:
                start = time.perf_counter()
                result = server.segment(path, mode, rule)
                result["seconds"] = round(time.perf_counter() - start, 3)
        except UserError as error:
            raise Refused(422, error.what) from None
        except (RuntimeError, MemoryError) as error:
            reason = "out of memory" if isinstance(error, MemoryError) else first_line(error)
            raise Refused(500, f"the network failed: {reason}") from None
        finally:
            server.places.release()
        notice(f"segmented {result['height']}x{result['width']}, mode {mode}, rule {rule}: "
               f"{result['seconds']} s")
        return result

    def _require_own_host(self):
        host = self.headers.get("Host", "")
        if not self.server.is_own_name(host):
            raise Refused(403, "the request is for another host name")
        origin = self.headers.get("Origin")
        if origin is not None and (not origin.startswith("http://")
                                   or not self.server.is_own_name(
                                       origin.removeprefix("http://"))):
            raise Refused(403, "requests from other sites are refused")

    def _choice(self, query, name, key):
        """Returns the last value of `name` in the query; by default the first of about[key]."""
        choices = self.server.about[key]
        try:
            fields = parse_qs(query, max_num_fields=10)
        except ValueError:
            raise Refused(400, "the query has too many fields") from None
        value = fields[name][-1] if name in fields else choices[0]
        if value not in choices:
            raise Refused(400, f"{name} must be one of {', '.join(choices)}")
        return value

    def _receive(self, file):
        """Write the body to `file`. Its length and first bytes are checked before the rest."""
        length, limits = self.headers.get("Content-Length", ""), self.server.limits
        if not re.fullmatch(r"[0-9]{1,18}", length) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "a Content-Length header is required")
        left = int(length)
        if left > limits.upload:
            raise Refused(413, f"the file has {left} bytes; at most {limits.upload} are accepted")
        first = True
        while left:
            block = self.rfile.read(min(left, 1 << 16))
            if not block:
                raise Refused(408, "the image did not arrive in time")
            if first and not block.startswith(SIGNATURES):
                raise Refused(415, "not a PNG, JPEG, WebP, TIFF, GIF or BMP image, nor an array "
                                   "(.npy)")
            first = False
            self._store(file, block)
            left -= len(block)
        if first:
            raise Refused(415, "the file is empty")
        self.deadline.cancel()

    def _store(self, file, block):
        """Write a block to the file: an error of the disk is none of the connection."""
        try:
            while block:        # a disk that is nearly full takes a part
                block = block[file.write(block):]
        except OSError as error:
            raise _no_room(error) from None

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

    def _close_input(self):
        with suppress(OSError):         # the sender has closed the connection already
            self.connection.shutdown(socket.SHUT_RD)

    def log_message(self, format: str, *args: object):
        """Print nothing: _segment reports what was segmented."""

    @contextmanager
    def _answering_refusals(self) -> Iterator[None]:
        """Answer a request that the block refuses with a status and a reason."""
        try:
            yield
        except Refused as refused:
            self._json(refused.status, {"error": str(refused)})
            self.wfile.flush()
            # Closing a connection with unread bytes resets it, and the sender loses the answer.
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            end = time.monotonic() + 2
            with suppress(OSError):
                while time.monotonic() < end and self.rfile.read1(1 << 16):
                    pass


def _no_room(error):
    """The refusal of an image that cannot be stored; also warns in the log."""
    reason = f"the server cannot store the image: {error.strerror or error}"
    warn(f"{reason} ({tempfile.gettempdir()})")
    return Refused(507, reason)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a server on `host`."""
    return host == "localhost" or _is_address(host) and ipaddress.ip_address(host).is_loopback


def _content_policy(page):
    """Returns a policy that permits the page's own script and style, and this server only."""
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
