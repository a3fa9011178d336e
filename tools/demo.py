"""Show in a browser what a checkpoint does: drop a picture, see its classes.

examples:
  python -m tools.demo -r auto
  python -m tools.demo -r model_best.pth --port 0 --device cuda

The page is served to this machine only. Pictures are held in memory for the time of one
request. --host 0.0.0.0 opens it to everybody who can reach the machine; there is no password.
"""
import signal
import sys
from pathlib import Path

from utils import console
from utils.arguments import command_parser, device

PAGE = Path(__file__).with_name("demo.html")


def parse(argv):
    parser = command_parser("python -m tools.demo", __doc__)
    add = parser.add_argument
    add("-r", "--resume", dest="checkpoint", required=True, metavar="PATH|auto",
        help="checkpoint to show; auto: the newest best one in saved/")
    add("-c", "--config", help="config to use in place of the checkpoint's own")
    add("--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    add("--upload", type=float, default=20, metavar="MB", help="largest file (default 20)")
    add("--pixels", type=float, default=40, metavar="MILLION",
        help="largest picture, judged by its header (default 40)")
    add("--work-pixels", type=float, default=2, metavar="MILLION",
        help="larger pictures are shrunk to this before the network sees them (default 2)")
    add("--seconds", type=float, default=20, help="in which a request must arrive (default 20)")
    add("-d", "--device", type=device, help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if min(args.upload, args.pixels, args.work_pixels, args.seconds) <= 0:
        parser.error("--upload, --pixels, --work-pixels and --seconds must be above 0")
    if not 0 <= args.port < 65536:
        parser.error("--port must be in 0..65535")
    return args


def main(argv=None):
    args = parse(argv)
    from utils import distributed
    from utils.checkpoint import find_checkpoint, read_checkpoint
    from utils.checkpoint_config import with_config
    from utils.demo_server import DemoServer, Limits, is_loopback
    from utils.open_model import open_model
    path = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(path), args.config)
    opened = open_model(checkpoint, distributed.start(args.device), path)
    limits = Limits(upload=int(args.upload * 1e6), seconds=args.seconds)
    segmenter = Segmenter(opened, int(args.pixels * 1e6), int(args.work_pixels * 1e6))
    server = DemoServer(args.host, args.port, PAGE.read_text(encoding="utf-8"), segmenter.about(),
                        segmenter, limits)
    if not is_loopback(args.host):
        console.warn(f"the page is open to everybody who can reach {args.host}, without a password")
    try:
        print(server.url, flush=True)
        console.notice("Ctrl-C ends it")
        server.serve_forever(poll_interval=0.2)
    except (KeyboardInterrupt, console.Interrupted) as stop:
        raise console.Interrupted(getattr(stop, "signum", signal.SIGINT),
                                  "the page is closed") from None
    finally:
        server.close()


class Segmenter:
    """A checkpoint as the function that the server calls.

    pixels: pictures whose header announces more are refused. work_pixels: larger
    pictures are shrunk to as many.
    """

    def __init__(self, opened, pixels: int, work_pixels: int):
        from utils.decision import RULES, build_decision
        self.opened, self.pixels, self.work_pixels = opened, pixels, work_pixels
        options = opened.config["predict"]
        self.rules = {name: build_decision(name, opened.activation, options)
                      for name in _first(options["test"], RULES)}
        self.predictors = {}
        for mode in _first(options["mode"], ("whole", "sliding", "multiscale")):
            # The scales in the config belong to its own mode.
            own = {} if mode == options["mode"] else {"scales": None}
            self.predictors[mode] = opened.predictor({**options, "mode": mode, **own})

    def about(self) -> dict:
        """What the page shows before the first picture."""
        opened = self.opened
        trained = f", epoch {opened.epoch}" if opened.epoch else ""
        return {"title": f"{opened.config['arch']['type']}{trained}", "name": opened.path.name,
                "classes": opened.class_names, "palette": opened.palette,
                "modes": list(self.predictors), "rules": list(self.rules)}

    def __call__(self, path, mode: str, rule: str) -> dict:
        """Labels as a PNG and the share of each class; DataError for what is no good picture."""
        import numpy as np
        import torch

        from utils.demo_server import data_url
        image, (height, width) = self._read(path)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous().to(self.opened.device)
        with torch.inference_mode():
            labels = self.rules[rule].labels(self.predictors[mode](x))[0].cpu().numpy()
        counts = np.bincount(labels.ravel(), minlength=len(self.opened.class_names))
        shares = [{"name": name, "colour": list(colour), "share": count / labels.size}
                  for name, colour, count in zip(self.opened.class_names, self.opened.palette,
                                                 counts.tolist()) if count]
        return {"height": labels.shape[0], "width": labels.shape[1],
                "original": [height, width], "labels": data_url(self._png(labels)),
                "classes": sorted(shares, key=lambda one: -one["share"])}

    def _read(self, path):
        """(uint8 (H, W, 3), shrunk where it must be; (H, W) before that)."""
        import cv2

        from utils.errors import DataError
        from utils.image_io import read_header, read_image
        size = read_header(path).size
        if size[0] * size[1] > self.pixels:
            raise DataError(f"the picture has {size[1]}x{size[0]} pixels; at most "
                            f"{self.pixels:,} are taken")
        image = read_image(path)
        share = (self.work_pixels / (size[0] * size[1])) ** 0.5
        if share < 1:
            new = [max(1, int(side * share)) for side in size]
            image = cv2.resize(image, new[::-1], interpolation=cv2.INTER_AREA)
        return image, size

    def _png(self, labels):
        import cv2

        from utils.palette import colorize
        picture = cv2.cvtColor(colorize(labels, self.opened.palette), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".png", picture)[1].tobytes()


def _first(name, names):
    """`names` with `name` in front: what the page offers first is what the config says."""
    return [name, *(other for other in names if other != name)]


if __name__ == "__main__":
    sys.exit(console.run(main))
