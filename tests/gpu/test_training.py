"""Training on a GPU: precision, resume, memory, processes, and no wait between two log lines."""
import json
import re

import pytest
import torch

import train
from tests.gpu.support import no_waiting
from tests.models.test_models import construct
from tests.support.places import ROOT
from tests.support.run_program import SMALL, digest, program
from trainer import Trainer
from utils.errors import ConfigError

pytestmark = pytest.mark.gpu

NETWORKS = {"ENet": [], "DeepLab": ["arch.args.backbone=resnet18"],
            "PSPNet": ["arch.args.backbone=resnet18"]}
DETERMINISTIC = ["deterministic=true"]
# Training from scratch, so that nothing is downloaded.
FAST = ["trainer.val=false", "optimizer.type=AdamW", 'optimizer.args={"lr": 0.003}']


def run(device, folder, *overrides):
    """Trains in this process, and returns the run's folder."""
    train.main(["-c", str(ROOT / "config.json"), "-d", str(device), *SMALL, *FAST,
                f"trainer.save_dir={folder}", *overrides])
    return max(folder.glob("*/*/last.pth"), key=lambda path: path.stat().st_mtime).parent


def records(folder):
    """The lines of the training in metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "train/loss" in line]


@pytest.mark.parametrize("amp", ["bf16", "fp16", "false"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_falls_in_every_precision(network, amp, device, tmp_path):
    if amp == "fp16" and device.type == "cpu":
        pytest.skip("fp16 training needs a GPU")
    folder = run(device, tmp_path, f"arch.type={network}", *NETWORKS[network],
                 f"trainer.amp={amp}", "trainer.epochs=4")
    losses = [line["train/loss"] for line in records(folder)]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2]), losses


def test_an_overflow_halves_the_loss_scale_and_changes_no_weight(cuda, tmp_path, monkeypatch):
    before, after = {}, {}
    update = Trainer._update

    def poisoned(self, loss, batches, parts):
        if self.progress.step == 3:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(torch.inf)
            before.update({k: v.clone() for k, v in self.model.named_parameters()})
        result = update(self, loss, batches, parts)
        if self.progress.step == 3:
            after.update({k: v.clone() for k, v in self.model.named_parameters()})
        return result
    monkeypatch.setattr(Trainer, "_update", poisoned)
    folder = run(cuda, tmp_path, "trainer.amp=fp16", "trainer.log_per_iter=1", "trainer.epochs=1")
    lines = records(folder)
    assert lines[-1]["train/overflows"] == 1
    assert lines[3]["train/loss_scale"] == lines[2]["train/loss_scale"] / 2
    assert before and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("extra", [
    [], ["trainer.accumulate=2"], ["trainer.ema=0.9"], ["trainer.clip_grad_norm=1"],
    ['train_loader.args.batch_transforms=["CutMix",{"type":"CopyBlob","args":'
     '{"pairs":[[3,1]]}}]']], ids=["plain", "accumulate", "ema", "clip", "batch_transforms"])
def test_ten_steps_between_two_log_lines_never_wait_for_the_gpu(extra, cuda, tmp_path,
                                                               monkeypatch):
    step, watch, steps = Trainer._step, no_waiting(), []

    def watched(self, batches):
        if self.progress.step == 10:
            watch.__enter__()
        if self.progress.step == 19:        # its end writes the next log line
            watch.__exit__(None, None, None)
        steps.append(self.progress.step)
        return step(self, batches)
    monkeypatch.setattr(Trainer, "_step", watched)
    try:
        run(cuda, tmp_path, "trainer.amp=bf16", "trainer.log_per_iter=10", "trainer.epochs=1",
            "train_loader.args.length=160", "train_loader.args.pin_memory=true", *extra)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps[-1] >= 19


@pytest.mark.parametrize("network", NETWORKS)
def test_a_resumed_run_is_equal_bit_for_bit_with_deterministic(network, device, tmp_path):
    common = [*DETERMINISTIC, f"arch.type={network}", *NETWORKS[network],
              "trainer.save_period=1", "trainer.epochs=2", "trainer.ema=0.9"]
    whole = run(device, tmp_path, *common)
    expected = digest(whole / "last.pth")
    (whole / "last.pth").unlink()
    train.main(["-r", str(whole / "checkpoint-epoch1.pth"), "-d", str(device)])
    assert digest(whole / "last.pth") == expected


def test_too_little_memory_is_one_message(cuda, tmp_path):
    free = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(0.3e9 / free)
    try:
        with pytest.raises(ConfigError, match=r"out of GPU memory in training at epoch 1"):
            run(cuda, tmp_path, "train_loader.args.size=[512,1024]",
                "train_loader.args.augment=false", "train_loader.args.batch_size=16")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_workers_and_pinned_memory_change_nothing(device, tmp_path):
    common = [*DETERMINISTIC, "trainer.epochs=1"]
    pinned = "true" if device.type == "cuda" else "false"
    alone = run(device, tmp_path / "a", *common, "train_loader.args.num_workers=0")
    several = run(device, tmp_path / "b", *common, "train_loader.args.num_workers=2",
                  f"train_loader.args.pin_memory={pinned}")
    assert digest(several / "last.pth") == digest(alone / "last.pth")


def test_one_rank_of_nccl_trains_as_a_plain_run(device, tmp_path):
    common = ["-c", "config.json", "-d", device.type, *SMALL, *FAST, *DETERMINISTIC,
              "trainer.epochs=1"]
    plain = program("train.py", *common, f"trainer.save_dir={tmp_path}/plain")
    assert plain.returncode == 0, plain.stderr
    ranks = program("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
                    "train.py", *common, f"trainer.save_dir={tmp_path}/ranks")
    assert ranks.returncode == 0, ranks.stderr
    [first], [second] = ([*(tmp_path / name).glob("*/*/last.pth")] for name in ("plain", "ranks"))
    assert digest(first) == digest(second)


COMPILED = ("ENet", "UNet", "PSPNet", "DeepLabV3", "HRNetOCR")


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_is_one_graph(name, device):
    model, _ = construct(name)
    model.to(device).eval()
    found = torch._dynamo.explain(model)(torch.randn(2, 3, 64, 96, device=device))
    reasons = [re.sub(r"\s+", " ", str(each.reason))[:200] for each in found.break_reasons]
    assert found.graph_break_count == 0, reasons


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_computes_the_same_forward_and_step(name, cuda):
    torch._dynamo.reset()
    model, _ = construct(name)
    model.to(cuda)
    images = torch.randn(2, 3, 64, 96, device=cuda)
    compiled = torch.compile(model)
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-2, atol=1e-3)
    model.train()
    outputs = compiled(images)
    sum(value.float().mean() for value in outputs.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
