"""What became of the images and videos of one run of inference.py."""
from dataclasses import dataclass, field

from utils import distributed
from utils.image_io import shown

MOST_NAMED = 20


@dataclass
class Report:
    """What became of every image.

    done: per image {"image", "size": [H, W], "files", "classes": {name: share}};
        per video "frames", "frames_per_s" and "complete" in place of "classes".
    failed: (path, reason). skipped: images whose results were there already.
    """

    done: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0

    def fail(self, path: str, reason: str):
        self.failed.append((path, reason))

    def __str__(self):
        films = [one for one in self.done if "frames" in one]
        parts = [f"{len(self.done)} ok"]
        if films:
            parts[0] += " (" + "; ".join(map(_film_text, films)) + ")"
        if self.skipped:
            parts.append(f"{self.skipped} skipped (there already)")
        if self.failed:
            shorter = "; ".join(f"{shown(path)} ({reason})"
                                for path, reason in self.failed[:MOST_NAMED])
            more = (f"; and {len(self.failed) - MOST_NAMED} more"
                    if len(self.failed) > MOST_NAMED else "")
            parts.append(f"{len(self.failed)} failed: {shorter}{more}")
        return ", ".join(parts)

    def as_dict(self) -> dict:
        """For --json."""
        speed = len(self.done) / self.seconds if self.seconds else 0.0
        return {"schema": 1, "ok": len(self.done), "skipped": self.skipped,
                "failed": [{"image": path, "reason": reason} for path, reason in self.failed],
                "seconds": self.seconds, "images_per_s": speed, "images": self.done}

    def merged(self, order: list[str]) -> "Report":
        """The reports of all ranks as one, in the order of the paths; the same on every rank."""
        reports = distributed.gather(self)
        place = {path: i for i, path in enumerate(order)}
        return Report(sorted((one for r in reports for one in r.done),
                             key=lambda one: place.get(one["image"], 0)),
                      sorted((one for r in reports for one in r.failed),
                             key=lambda one: place.get(one[0], 0)),
                      sum(r.skipped for r in reports), max(r.seconds for r in reports))


def _film_text(one):
    text = f"{shown(one['files'][0])}: {one['frames']} frames, {one['frames_per_s']:.1f} frames/s"
    if not one["complete"] and one["frames_expected"]:
        text += f", of {one['frames_expected']} that were expected"
    return text
