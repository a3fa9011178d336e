"""tools.demo: the page in a browser, and the requests that the server refuses."""
import base64
import dataclasses
import http.client
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from models.enet import ENet
from tests.support.band_images import band_image, write_band_data
from tests.support.browser import Browser, find_browser
from tests.support.graphs import NAMES, TinyNet, write_tiny_checkpoint
from tests.support.limits import files_limited_to
from tests.support.png import chunk, png
from tests.support.run_program import start
from tools.demo import __main__ as demo
from tools.demo.examples import of_config, of_folder
from tools.demo.segmenter import Segmenter
from tools.demo.server import DemoServer, Limits, is_loopback
from utils.checkpoint.read import read_checkpoint
from utils.cli import console
from utils.errors import ConfigError, DataError
from utils.export.graph import made_up_image
from utils.images.bands import Bands
from utils.images.image_io import read_image
from utils.images.normalize import Normalize
from utils.predict.open_model import open_model

LIMITS = Limits(upload=60_000, seconds=20, waiting=1, connections=6)


def serve(segment, about, limits=LIMITS, host="127.0.0.1", examples=()):
    server = DemoServer(host, 0, demo.PAGE.read_text(encoding="utf-8"), about, segment, limits,
                        examples)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02},
                     daemon=True).start()
    return server


def stop(server):
    server.shutdown()
    server.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pth", monkeypatch)
        return open_model(read_checkpoint(path), "cpu", path)


def folder_of_pictures(folder):
    for number in range(9):
        (folder / f"scene_{number}.png").write_bytes(image_bytes(seed=number))
    return str(folder)


@pytest.fixture(scope="module")
def server(opened, tmp_path_factory):
    segmenter = Segmenter(opened, pixels=50_000, work_pixels=4_000)
    examples = of_folder(folder_of_pictures(tmp_path_factory.mktemp("pictures")), 50_000,
                         opened.normalize)
    server = serve(segmenter, {**segmenter.about(), "examples": [
        {"name": one.name, "picture": one.picture} for one in examples]},
        examples=[one.file for one in examples])
    yield server
    stop(server)


@pytest.fixture
def slow_server():
    """A server whose network runs until `go` is set, and records how many run at once."""
    go, running, most = threading.Event(), [], []

    def segment(path, mode, rule):
        running.append(1)
        most.append(len(running))
        go.wait(20)
        running.pop()
        return {"height": 1, "width": 1}
    server = serve(segment, {"modes": ["whole"], "rules": ["max"]})
    server.go, server.most = go, most
    yield server
    go.set()
    stop(server)


def image_bytes(height=40, width=60, seed=0, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(made_up_image(1, height, width, seed)[0].transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def ask(server, method="POST", path="/segment", body=None, **headers):
    """Returns (status, answer); an answer in JSON is parsed."""
    connection = http.client.HTTPConnection(server.host.strip("[]"), server.server_port, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    if reply.headers.get("Content-Type") == "application/json":
        return reply.status, json.loads(content)
    return reply.status, content


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_answer_for_an_image_is_its_labels_and_shares(server, opened, kind):
    status, result = ask(server, body=image_bytes(kind=kind))
    assert status == 200 and (result["height"], result["width"]) == (40, 60)
    assert sum(one["share"] for one in result["classes"]) == pytest.approx(1)
    shares = [one["share"] for one in result["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert ("image" in result) == (kind == "TIFF")      # the one that browsers do not show
    colors = pixels(result["labels"], "RGB")
    for one in result["classes"]:
        assert one["colour"] == opened.palette[NAMES.index(one["name"])]
        share = (colors == one["colour"]).all(-1).mean()
        assert share == pytest.approx(one["share"])


def pixels(url, mode=None):
    """The pixels of a PNG in an answer; mode: of Pillow, to convert to."""
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    return np.array(image.convert(mode) if mode else image)


def test_the_labels_are_the_file_that_inference_py_writes(server, opened, tmp_path):
    (tmp_path / "scene.png").write_bytes(image_bytes())
    predictor = opened.predictor().for_files()
    image = read_image(tmp_path / "scene.png").transpose(2, 0, 1)[None].copy()
    labels = predictor(torch.from_numpy(image)).argmax(1)[0].numpy()
    status, result = ask(server, body=image_bytes())
    assert status == 200 and (pixels(result.get("file", result["labels"])) == labels).all()
    black = np.array([not any(color) for color in opened.palette])[labels]
    assert ("file" in result) == black.any()        # what the page shows is then another picture
    if black.any():
        assert ((pixels(result["labels"])[..., 3] == 0) == black).all()
    other = dataclasses.replace(opened, label_ids=[7, 300, 9][:len(NAMES)] + [
        400 + k for k in range(len(NAMES) - 3)])
    answer = Segmenter(other, 50_000, 4_000)(str(tmp_path / "scene.png"), "whole", "max")
    assert (pixels(answer["file"]) == np.array(other.label_ids)[labels]).all()
    assert (pixels(answer["labels"], "RGB") == pixels(result["labels"], "RGB")).all()


def test_the_examples_are_pictures_that_the_server_takes(server, tmp_path):
    about = ask(server, "GET", "/about")[1]
    assert [one["name"] for one in about["examples"]] == [
        f"scene_{number}.png" for number in (0, 1, 3, 4, 6, 7)]
    status, picture = ask(server, "GET", "/example/2")
    assert status == 200 and (np.array(Image.open(io.BytesIO(picture))) == np.array(
        Image.open(io.BytesIO(image_bytes(seed=3))))).all()
    assert ask(server, body=picture)[0] == 200
    for path in ("/example/6", "/example/-1", "/example/", "/example/../about"):
        assert ask(server, "GET", path)[0] == 404
    with pytest.raises(DataError, match="no picture of at most 1"):
        of_folder(folder_of_pictures(tmp_path), 1, Normalize([0.5] * 3, [0.5] * 3))


def test_examples_come_from_the_data_that_is_scored_or_a_reason_is_given():
    section = {"type": "Shapes", "args": {"split": "val", "length": 9, "size": [32, 48]}}
    config = {"val_loader": section, "ignore_index": 255, "seed": 0}
    assert [one.name for one in of_config(config, 10_000)] == [
        f"val_0000{number}" for number in (0, 1, 3, 4, 6, 7)]
    assert "at most 10 pixels" in of_config(config, 10)
    gone = {"type": "CamVid", "args": {"data_dir": "/nowhere", "split": "val"}}
    assert "/nowhere" in of_config({**config, "val_loader": gone}, 10_000)


def test_images_with_bands_are_shown_and_are_examples(opened, tmp_path):
    bands = Bands((1, 2, 3, 4), types=("uint16",))
    normalize = Normalize([2e4] * 4, [1e4] * 4, scale=1.0, bands=bands)
    network = TinyNet().take_channels(4).eval()
    data = write_band_data(tmp_path, count=3)
    section = {"type": "Folder", "args": data}
    of_data = of_config({"val_loader": section, "ignore_index": 255, "seed": 0}, 10_000)
    (tmp_path / "images" / "cube.npy").write_bytes(npy_of(band_image(seed=7)[0]))
    segmenter = Segmenter(dataclasses.replace(opened, model=network, normalize=normalize), 50_000,
                          4_000)
    examples = of_folder(str(tmp_path / "images"), 50_000, normalize)
    assert [one.name for one in examples] == ["cube.npy", "p0.tif", "p1.tif", "p2.tif"]
    assert [one.file for one in of_data] == [one.file for one in examples[1:]]
    server = serve(segmenter, segmenter.about(), examples=[one.file for one in examples])
    try:
        for number in (0, 1):
            status, file = ask(server, "GET", f"/example/{number}")
            status, result = ask(server, body=file)
            assert status == 200 and pixels(result["image"]).shape == (40, 48, 3)
        status, result = ask(server, body=image_bytes())
        assert status == 422 and "its values are uint8" in result["error"]
    finally:
        stop(server)


def npy_of(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def test_a_disk_that_is_gone_leaves_the_page_without_examples(monkeypatch):
    def load(self, index):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr("dataloader.shapes.Shapes.load", load)
    section = {"type": "Shapes", "args": {"split": "val", "length": 9, "size": [32, 48]}}
    config = {"val_loader": section, "ignore_index": 255, "seed": 0}
    assert "Input/output error" in of_config(config, 10_000)


def test_the_page_explains_its_choices_and_the_size_of_validation(opened):
    about = Segmenter(opened, 50_000, 4_000).about()
    assert set(about["explained"]) == {*about["modes"], *about["rules"]}
    assert "expected Dice score" in about["explained"]["rankdice"]
    assert "at their own size" in about["size"]
    validated = dataclasses.replace(opened, base_size=64)
    assert "at 64 pixels (long side), as in validation" in Segmenter(
        validated, 50_000, 4_000).about()["size"]


@pytest.mark.parametrize("mode", ["whole", "sliding", "multiscale"])
def test_mode_and_rule_are_those_of_the_predictor(server, opened, mode):
    from utils.decision.rules import build_decision
    image = torch.from_numpy(made_up_image(1, 40, 60))
    logits = opened.predictor({**opened.config["predict"], "mode": mode, "scales": None})(image)
    for rule in ("max", "rankdice"):
        labels = build_decision(rule, "softmax", opened.config["predict"]).labels(logits)
        expected = {NAMES[k]: n / 2400 for k, n in enumerate(labels.flatten().bincount().tolist())
                    if n}
        status, result = ask(server, path=f"/segment?mode={mode}&rule={rule}", body=image_bytes())
        assert status == 200
        assert {one["name"]: one["share"] for one in result["classes"]} == expected


def test_a_large_image_is_reduced_and_the_answer_states_both_sizes(server):
    status, result = ask(server, body=image_bytes(80, 200, kind="JPEG"))
    assert status == 200 and result["original"] == [80, 200]
    assert result["height"] * result["width"] <= 4000 and result["width"] == 100


def bomb(width, height):
    """Returns a PNG of a few bytes whose header states a large size."""
    return png(width, height, chunk(b"IDAT", zlib.compress(b"")))


@pytest.mark.parametrize("body, status, words", [
    (b"", 415, "empty"), (b"<html>", 415, "not a PNG"), (b"%!PS-Adobe-3.0 EPSF", 415, "not a PNG"),
    (b"\x89PNG\r\n\x1a\n", 422, ""), (b"RIFF....WAVE", 422, ""), (bomb(300, 300), 422, "at most"),
    (bomb(100_000, 100_000), 422, ""), (image_bytes()[:300], 422, "truncated"),
    (b"\xff\xd8\xff" + bytes(60_000), 413, "at most 60000")])
def test_files_that_are_not_images_of_permitted_size_are_refused(server, body, status, words):
    found, answer = ask(server, body=body)
    assert found == status and words in answer["error"]
    assert "/" not in answer["error"]           # no path of the server


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/../../etc/passwd", 404), ("GET", "/demo.html", 404), ("GET", "/?x=1", 404),
    ("POST", "/", 404), ("POST", "/segment?mode=/etc/passwd", 400),
    ("POST", "/segment?rule=exec", 400), ("POST", "/segment?" + "a=1&" * 50, 400),
    ("PUT", "/segment", 501), ("DELETE", "/", 501)])
def test_the_server_has_one_page_and_one_action(server, method, path, status):
    assert ask(server, method, path, image_bytes() if method == "POST" else None)[0] == status
    assert ask(server, "GET", "/")[0] == 200


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Host": ""}, {"Host": "127.0.0.2"},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://localhost"}])
def test_requests_for_other_hosts_and_from_other_sites_are_refused(server, headers):
    for method, path in (("GET", "/"), ("GET", "/about"), ("POST", "/segment")):
        assert ask(server, method, path, image_bytes() if method == "POST" else None,
                   **headers)[0] == 403


def test_the_server_accepts_its_own_names(server):
    port = server.server_port
    for name in ("localhost", "127.0.0.1", f"localhost:{port}", f"127.0.0.1:{port}"):
        assert ask(server, "GET", "/about", Host=name)[0] == 200
    assert ask(server, body=image_bytes(), Origin=f"http://127.0.0.1:{port}")[0] == 200
    everywhere = DemoServer("0.0.0.0", 0, "", {}, None)
    try:
        assert everywhere.is_own_name("192.168.1.5:8000") is False
        assert everywhere.is_own_name(f"192.168.1.5:{everywhere.server_port}")
        assert not everywhere.is_own_name(f"evil.example:{everywhere.server_port}")
    finally:
        everywhere.server_close()
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_the_page_runs_only_its_own_script(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", "/")
    reply = connection.getresponse()
    policy, page = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and policy.count("sha256-") == 2
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


@pytest.mark.parametrize("headers", [{"Content-Length": "many"}, {"Content-Length": "-5"},
                                     {"Transfer-Encoding": "chunked"}])
def test_a_content_length_is_required(server, headers):
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\n" + text.encode()
                           + b"\r\n")
        assert b" 411 " in connection.recv(100)


@pytest.mark.parametrize("beginning", [
    b"POST /seg", b"POST /segment HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n\x89PNG\r\n\x1a\n"])
def test_a_sender_of_single_bytes_is_disconnected(beginning):
    """Takes 1.5 seconds, the time limit for a request."""
    server = serve(None, {"modes": ["whole"], "rules": ["max"]}, Limits(seconds=1.5))
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(beginning)
        connection.settimeout(0.2)
        while time.monotonic() < start + 60:
            try:
                connection.sendall(b"a")
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - start < 40
    assert ask(server, "GET", "/")[0] == 200
    stop(server)


def test_one_forward_runs_at_a_time_and_few_may_wait(slow_server):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(slow_server, body=image_bytes())))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while len(answers) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert [status for status, _ in answers] == [503, 503]
    assert ask(slow_server, "GET", "/")[0] == 200           # the page stays available
    slow_server.go.set()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200, 200, 503, 503]
    assert slow_server.most == [1, 1]


def test_connections_beyond_the_limit_are_closed(slow_server):
    idle = [socket.create_connection(("127.0.0.1", slow_server.server_port)) for _ in range(6)]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(slow_server, "GET", "/")
    for connection in idle:
        connection.close()
    end = time.monotonic() + 20
    while True:
        try:
            assert ask(slow_server, "GET", "/")[0] == 200
            return
        except (http.client.RemoteDisconnected, ConnectionError):    # closing takes a moment
            assert time.monotonic() < end


def test_after_a_network_error_the_next_image_works():
    def segment(path, mode, rule):
        if not fail:
            return {"height": 1, "width": 1}
        raise fail.pop()
    fail = [RuntimeError("out of memory\nlong story"), MemoryError()]
    server = serve(segment, {"modes": ["whole"], "rules": ["max"]})
    try:
        for _ in range(2):
            status, answer = ask(server, body=image_bytes())
            assert status == 500 and "memory" in answer["error"] and "\n" not in answer["error"]
        assert ask(server, body=image_bytes())[0] == 200
    finally:
        stop(server)


def test_a_sender_and_the_log_are_told_of_a_full_disk(server, capsys):
    assert ask(server, body=image_bytes())[0] == 200
    with files_limited_to(500):
        status, answer = ask(server, body=image_bytes())
    assert status == 507 and "the server cannot store the image: File too large" in answer["error"]
    assert "warning: the server cannot store the image" in capsys.readouterr().err
    assert ask(server, body=image_bytes())[0] == 200


def test_a_folder_of_temporary_files_that_is_gone_is_no_lost_connection(server, monkeypatch,
                                                                        tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    status, answer = ask(server, body=image_bytes())
    assert status == 507 and "No such file or directory" in answer["error"]
    assert "gone" in capsys.readouterr().err


def test_logits_that_are_not_finite_are_told_to_the_sender(server, opened, monkeypatch):
    broken = opened.model.second.bias
    monkeypatch.setattr(broken, "data", broken.data * float("nan"))
    status, answer = ask(server, body=image_bytes())
    assert status == 422 and "not finite" in answer["error"]


def test_a_port_in_use_is_a_clear_error(server):
    with pytest.raises(ConfigError, match="cannot listen on 127.0.0.1"):
        DemoServer("127.0.0.1", server.server_port, "", {}, None)


def test_a_host_other_than_this_machine_gives_a_warning(tmp_path, monkeypatch, capsys):
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny.pth", monkeypatch)
    monkeypatch.setattr(DemoServer, "serve_forever", lambda *_, **__: (_ for _ in ()).throw(
        KeyboardInterrupt))
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        arguments = ["-r", checkpoint, "--port", "0", "--host", host, "-d", "cpu"]
        assert console.run(demo.main, arguments) == 130
        output = capsys.readouterr()
        assert ("without a password" in output.err) == warned
        assert output.out.startswith(f"http://{host}:")


@pytest.mark.slow
@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_ctrl_c_closes_the_page_without_a_traceback(tmp_path, signum, status):
    """Takes about four seconds of CPU each: a new process loads torch."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = write_tiny_checkpoint(tmp_path / "enet.pth", monkeypatch, weights=ENet(len(NAMES)))
    process = start("-m", "tools.demo", "-r", path, "--port", "0", "-d", "cpu")
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and "the page is closed" in error
    assert "Traceback" not in error


def test_every_element_that_the_script_asks_for_is_on_the_page():
    page = demo.PAGE.read_text(encoding="utf-8")
    body, script = page.split("<script>")
    ids = re.findall(r'\bid="([\w-]+)"', body)
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'by\("([\w-]+)"\)', script))
    assert len(asked) > 10 and asked <= set(ids)
    assert {place for place in re.findall(r'\bfor="([\w-]+)"', body)} <= set(ids)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not on PATH")
def test_the_script_of_the_page_is_javascript(tmp_path):
    page = demo.PAGE.read_text(encoding="utf-8")
    path = tmp_path / "page.js"
    path.write_text(page.partition("<script>")[2].partition("</script>")[0], encoding="utf-8")
    subprocess.run(["node", "--check", path], check=True)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is on PATH")
def test_the_whole_flow_in_a_browser(server, tmp_path):
    """Takes about five seconds: a browser starts."""
    (tmp_path / "scene.png").write_bytes(image_bytes())
    (tmp_path / "page.html").write_text("<html>")
    browser = Browser(tmp_path / "profile")
    try:
        browser.send("Page.navigate", url=server.url)
        browser.wait_for(f"document.querySelectorAll('#legend li').length == {len(NAMES)}")
        assert browser.run("document.querySelector('#status').textContent") == "no image yet"
        browser.drop("#drop", tmp_path / "scene.png")
        finished = "/^40 × 60 .height × width., [0-9.]+ s$/.test(" \
            "document.querySelector('#status').textContent)"
        browser.wait_for(finished)
        browser.wait_for("document.querySelector('#labels').naturalWidth == 60")
        expected = ask(server, body=image_bytes())[1]["classes"]
        shown = browser.run("document.querySelector('#legend').innerText").split("\n")
        assert shown[:2] == [expected[0]["name"], f"{100 * expected[0]['share']:.1f} %"]
        assert set(NAMES) <= set(shown)
        # A pale color on a white page has an outline.
        assert browser.run("getComputedStyle(document.querySelector('#legend rect')).stroke") \
            not in ("none", "rgb(255, 255, 255)")
        with Image.open(io.BytesIO(browser.screenshot())) as screen:
            # The overlay is visible: an empty page has only a few grays in the middle.
            pixels = np.array(screen.convert("RGB"))[200:450, 100:600].reshape(-1, 3)
            assert len(np.unique(pixels, axis=0)) > 500

        before = browser.run("document.querySelector('#labels').src")
        browser.press("#rule", "ArrowDown", 40)
        assert browser.run("document.querySelector('#rule').value") == "T"
        browser.press("#mode", "ArrowDown", 40)
        assert browser.run("document.querySelector('#mode').value") == "sliding"
        browser.wait_for(f"{finished} && document.querySelector('#labels').src != {before!r}")
        browser.press("#opacity", "Home", 36)
        assert browser.run("document.querySelector('#labels').style.opacity") == "0"
        assert browser.errors == []

        browser.choose_file("#file", tmp_path / "page.html")
        browser.wait_for("document.querySelector('#status').classList.contains('error')")
        assert "not a PNG" in browser.run("document.querySelector('#status').textContent")
        assert browser.run("document.querySelector('#labels').hidden")
        assert browser.run("document.querySelector('#invite').innerText").startswith(
            "page.html: not a PNG")
        browser.run("document.querySelector('#examples button').click()")
        browser.wait_for(f"{finished} && !document.querySelector('#save').hidden")
        assert browser.run("document.querySelector('#save-labels').download") == "scene_0.png"
        browser.run("HTMLAnchorElement.prototype.click = function() { saved = this; }; "
                    "document.querySelector('#save-overlay').click(); 0")
        browser.wait_for("window.saved?.href.startsWith('blob:')")
        (tmp_path / "scene.tif").write_bytes(image_bytes(kind="TIFF"))
        browser.choose_file("#file", tmp_path / "scene.tif")
        browser.wait_for(f"{finished} && document.querySelector('#image').naturalWidth == 60")
    finally:
        browser.close()
