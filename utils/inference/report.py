"""The report of one run of inference.py."""
from dataclasses import dataclass, field

from utils.errors import DataError, UserError, listed, shown
from utils.machine import distributed

MOST_NAMED = 20             # failed images that the summary names


@dataclass
class InferenceReport:
    """The result of every image and video.

    done: per image {"image", "size": [H, W], "files", "classes": {name: share}};
        per video "frames", "frames_expected", "frames_per_s" and "complete" in place of "classes".
    failed: (path, reason). skipped: number of inputs whose results existed already.
    prediction: how images are predicted, as utils.inference.pipeline.Pipeline.describe returns it.
    status: the exit status: 0, or the largest one of the failures.
    """

    prediction: dict = field(default_factory=dict)
    done: list[dict] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0
    status: int = 0

    def fail(self, path: str, reason: str | UserError):
        """Record an image or video that failed."""
        known = isinstance(reason, UserError)
        self.failed.append((path, reason.what if known else reason))
        self.status = max(self.status, reason.exit_status if known else DataError.exit_status)

    def __str__(self):
        """Returns the summary: one line."""
        films = [one for one in self.done if "frames" in one]
        parts = [f"{len(self.done)} ok"]
        if films:
            parts[0] += " (" + "; ".join(map(_film_text, films)) + ")"
        if self.skipped:
            parts.append(f"{self.skipped} skipped (results exist)")
        if self.failed:
            reasons = listed(self.failed, MOST_NAMED, "; ",
                             lambda failure: f"{shown(failure[0])} ({failure[1]})")
            parts.append(f"{len(self.failed)} failed: {reasons}")
        return ", ".join(parts)

    def as_dict(self) -> dict:
        """Returns the report that --json prints."""
        speed = len(self.done) / self.seconds if self.seconds else 0.0
        return {"schema": 1, "prediction": self.prediction, "ok": len(self.done),
                "skipped": self.skipped,
                "failed": [{"image": path, "reason": reason} for path, reason in self.failed],
                "seconds": self.seconds, "images_per_s": speed, "images": self.done}

    def merged(self, order: list[str]) -> "InferenceReport":
        """Returns the reports of all ranks as one, sorted as the paths in `order`; on every rank.

        seconds: those of the slowest rank.
        """
        reports = distributed.gather(self)
        place = {path: i for i, path in enumerate(order)}
        return InferenceReport(
            self.prediction, status=max(report.status for report in reports),
            done=sorted((one for report in reports for one in report.done),
                        key=lambda one: place.get(one["image"], 0)),
            failed=sorted((one for report in reports for one in report.failed),
                          key=lambda one: place.get(one[0], 0)),
            skipped=sum(report.skipped for report in reports),
            seconds=max(report.seconds for report in reports))


def _film_text(one):
    text = f"{shown(one['files'][0])}: {one['frames']} frames, {one['frames_per_s']:.1f} frames/s"
    if not one["complete"] and one["frames_expected"]:
        text += f", {one['frames_expected']} were expected"
    return text
