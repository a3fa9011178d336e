"""The optimizer of a config: torch's own class over the parameter groups that the config makes."""
import inspect
from typing import Any

import torch

from utils.cli.console import notice
from utils.config.build import construct
from utils.config.registry import components, lookup
from utils.errors import ConfigError
from utils.training.parameter_groups import parameter_groups


def build_optimizer(section: dict, model: Any) -> torch.optim.Optimizer:
    """Build torch.optim's class `section["type"]` over the trainable parameters of `model`.

    section: {"type", "args"}, and the settings of utils.training.parameter_groups; schedulers
        keep the ratios of the rates.
    model: a BaseModel.

    The fused step is used if the optimizer has one: on CPUs it is two to four times faster than
    the default loop; foreach is slower than the loop there. Raises ConfigError for arguments that
    the optimizer refuses, at once or in its first step, or if there is nothing to train.
    """
    cls = lookup(section["type"], components("optimizers"), "optimizer.type")
    args = dict(section.get("args") or {})
    if section.get("differential_lr") and not model.backbone_parameters():
        raise ConfigError("differential_lr is true, but the network has no backbone",
                          "optimizer.differential_lr", "set it to false")
    if section.get("differential_lr") and not any(p.requires_grad
                                                  for p in model.backbone_parameters()):
        notice("optimizer.differential_lr has no effect: the backbone is frozen")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("every parameter is frozen: there is nothing to train",
                          "arch.args", "set freeze_backbone to false")
    groups = _groups(section, cls, args, model)
    trained = [p for group in groups for p in group["params"]]
    parameters = inspect.signature(cls).parameters
    if "fused" in parameters and not {"fused", "foreach", "differentiable"} & set(args):
        args["fused"] = all(p.is_floating_point() for p in trained)
    # Some parameters and flags are refused by other errors, or only when a step is taken.
    refusals = (ValueError, OverflowError, RuntimeError, TypeError, AssertionError)
    optimizer = construct(cls, args, "optimizer.args", {"params": groups}, refusals)
    device = trained[0].device
    try:
        moved = [_three_steps(cls, args, device, factor) for factor in (1.0, 2.0)]
    except refusals as error:
        raise ConfigError(f"{cls.__name__} cannot take a step on {device}: "
                          f"{error or type(error).__name__}", "optimizer.args") from error
    if moved[0] == moved[1] and args.get("lr") != 0:
        notice(f"{cls.__name__} uses the learning rate in its first step only: a schedule has no "
               "effect, and neither has another optimizer.args.lr when resuming")
    if args.get("lr") == 0:
        notice("optimizer.args.lr is 0: the weights will not change")
    return optimizer


def _groups(section, cls, args, model):
    """The groups of the optimizer, with their own rates and weight decays."""
    declared = inspect.signature(cls).parameters
    lr = args.get("lr", declared["lr"].default)
    decay = args.get("weight_decay", getattr(declared.get("weight_decay"), "default", None))
    for number, entry in enumerate(section.get("groups") or ()):
        if entry.get("weight_decay") is not None and decay is None:
            raise ConfigError(f"{cls.__name__} has no weight decay",
                              f"optimizer.groups[{number}].weight_decay", "remove it")
    if section.get("no_decay") and not decay:
        notice("optimizer.no_decay has no effect: " + (
            "optimizer.args.weight_decay is 0" if decay is not None else
            f"{cls.__name__} has no weight decay"))
    groups = []
    for group in parameter_groups(section, model, tell=True):
        groups.append({"params": group["params"], "name": group["name"]})
        if group["lr_factor"] != 1:
            groups[-1]["lr"] = lr * group["lr_factor"]
        if group["weight_decay"] is not None and decay is not None:
            groups[-1]["weight_decay"] = group["weight_decay"]
    return groups


def _three_steps(cls, args, device, factor):
    """Where a weight is after three steps, the rate times `factor` after the first one."""
    weight = torch.nn.Parameter(torch.zeros(2, 2, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = cls([weight], **args)
    for change in (factor, 1.0, 1.0):
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= change
    return weight.tolist()
