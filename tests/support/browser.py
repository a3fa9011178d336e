"""Controls a headless Chromium through a pipe with its DevTools protocol."""
import base64
import json
import os
import select
import shutil
import signal
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """Returns the path of an installed Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page. `errors` lists the errors of its console and scripts."""

    def __init__(self, folder, width: int = 1100, height: int = 700):
        commands, self.write_to = os.pipe()
        self.read_from, answers = os.pipe()
        path = find_browser()
        arguments = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-dev-shm-usage", "--disable-background-networking",
                     f"--window-size={width},{height}", f"--user-data-dir={folder}",
                     "--remote-debugging-pipe", "about:blank"]
        silent = os.open(os.devnull, os.O_WRONLY)
        self.process = os.posix_spawn(path, arguments, os.environ, file_actions=[
            (os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4),
            (os.POSIX_SPAWN_DUP2, silent, 2)])
        for handle in (commands, answers, silent):
            os.close(handle)
        self.buffer, self.number, self.session, self.errors = b"", 0, None, []
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in pages if one["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Run a DevTools command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self):
        """Returns the next message of the browser. Records errors."""
        end = time.monotonic() + 60
        while b"\0" not in self.buffer:
            assert select.select([self.read_from], [], [], max(0, end - time.monotonic()))[0], \
                "the browser did not answer"
            block = os.read(self.read_from, 1 << 20)
            assert block, "the browser ended"
            self.buffer += block
        message, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(message)
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"].get("text", ""))
        if message.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])
        return message

    def run(self, script):
        """Returns the value of a JavaScript expression; awaits promises."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script, seconds=60):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"did not become true: {script}"
            time.sleep(0.05)

    def open_page(self, path, width, scheme):
        """Open a file with pictures in a window of this width; scheme: "light" or "dark"."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.as_uri())
        self.wait_for("document.readyState == 'complete' && document.images.length")

    def middle(self, selector):
        """Returns [x, y] of the center of an element."""
        return self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
                        f"(document.querySelector({selector!r}).getBoundingClientRect())")

    def drop(self, selector, path):
        """Drag a file onto an element and drop it."""
        x, y = self.middle(selector)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose_file(self, selector, path):
        """Choose a file in a file input."""
        node = self.send("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.send("DOM.setFileInputFiles", files=[str(path)],
                  objectId=node["result"]["objectId"])

    def press(self, selector, key, code):
        """Focus an element and press a key."""
        self.run(f"document.querySelector({selector!r}).focus()")
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        """Returns a picture of the page as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def close(self):
        os.kill(self.process, signal.SIGTERM)
        os.waitpid(self.process, 0)
        os.close(self.write_to)
        os.close(self.read_from)
