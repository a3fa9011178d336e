"""Which parameters of a network train at which rate and with which weight decay.

The settings of the section `optimizer` go together: `differential_lr` (yassouali's rule), `groups`
by name, `no_decay` by kind, and `layer_decay` by depth (Clark et al., ELECTRA, 2020,
arXiv:2003.10555; Bao et al., BEiT, 2022, arXiv:2106.08254).
"""
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.cli.console import notice
from utils.errors import ConfigError, expression_problem, listed

BACKBONE_RATIO = 0.1    # of differential_lr: the encoder's rate as a share of the head's
MAX_NAMES = 5           # names of parameters in a message
# Names of parameters that say where something is, and of tokens that stand for no pixel.
_POSITION = re.compile(r"pos(ition)?_?embed|position|rel(ative)?_?pos|bias_table|token|"
                       r"(query|level)_?embed")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """What holds for the parameters whose names fit, instead of the optimizer's "args".

    match: a regular expression that is searched in their full names, such as "^backbone.layer1.";
        the first entry that fits a name counts.
    lr_factor: their rate as a share of optimizer.args.lr. weight_decay: theirs. null: what holds
    without the entry.
    """

    match: str
    lr_factor: float | None = None
    weight_decay: float | None = None

    @staticmethod
    def check_settings(settings: dict) -> list[str]:
        """The mistakes in an entry that its types do not show, as "key: text"."""
        problems = [f"{key}: expected at least 0, got {settings[key]}"
                    for key in ("lr_factor", "weight_decay") if (settings[key] or 0) < 0]
        wrong = expression_problem(settings["match"])
        return problems + ([f"match: {wrong}"] if wrong else [])


_NO_ENTRY = ParameterGroup(match="")


def parameter_groups(section: dict, model: Any, tell: bool = False) -> list[dict]:
    """The trainable parameters of a network in groups of one rate and one weight decay.

    section: `optimizer` of a config. model: a BaseModel. A group is {"params", "name", "lr_factor",
    "weight_decay"}; the last one is None if that of the optimizer holds. The groups without an
    entry come first. Their order depends only on the section and on the names of the network, so
    a checkpoint needs neither. tell: say which settings have no effect. Raises ConfigError for an
    entry that fits no parameter.
    """
    entries = [ParameterGroup(**entry) for entry in section.get("groups") or ()]
    names = {id(p): name for name, p in model.named_parameters()}
    entry_of = _entries_of(entries, list(names.values()))
    kinds = _of_kinds(section.get("no_decay") or (), model)
    undecayed = set().union(*kinds.values())
    backbone = {id(p) for p in model.backbone_parameters()}
    depth = _shares_of_layers(section.get("layer_decay", 1.0), model)
    split = section.get("differential_lr", False)
    found: dict[tuple, dict] = {}
    for parameter in [*model.head_parameters(), *model.backbone_parameters()]:
        if not parameter.requires_grad:
            continue
        inside, number = id(parameter) in backbone, entry_of.get(names[id(parameter)])
        entry = _NO_ENTRY if number is None else entries[number]
        place = ("backbone" if inside else "head") if split or depth else "all"
        layer, factor = depth.get(id(parameter), ("", 1.0))
        if entry.lr_factor is not None:
            factor *= entry.lr_factor
        elif split and inside:
            factor *= BACKBONE_RATIO
        decay = entry.weight_decay
        if decay is None and id(parameter) in undecayed:
            decay = 0.0
        name = "_".join(filter(None, (
            place if number is None or place != "all" else "", layer,
            "" if number is None else f"group_{number}",
            "no_decay" if decay == 0 and entry.weight_decay is None else "")))
        group = found.setdefault((-1 if number is None else number, name), {
            "params": [], "name": name, "lr_factor": factor, "weight_decay": decay})
        group["params"].append(parameter)
    if tell:
        _tell_idle(entries, entry_of, kinds, model)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes, whatever its class."""
    return "norm" in type(module).__name__.lower() or getattr(module, "is_norm", False)


def parameter_order(section: dict, model: Any) -> list[nn.Parameter]:
    """The parameters in the order in which an optimizer of this section saves their state."""
    return [p for group in parameter_groups(section, model) for p in group["params"]]


def _entries_of(entries, names):
    """name -> the number of the first entry that fits it. Raises ConfigError for an idle entry."""
    taken: dict[str, int] = {}
    for number, entry in enumerate(entries):
        fitting = [name for name in names if re.search(entry.match, name)]
        new = [name for name in fitting if name not in taken]
        if not new:
            what = (f"the entries before it take all {len(fitting)} parameters that "
                    f"{entry.match!r} fits" if fitting else
                    f"{entry.match!r} fits no parameter; they are called "
                    f"{listed(_examples(names), 2 * MAX_NAMES)}")
            raise ConfigError(what, f"optimizer.groups[{number}].match",
                              "put it before them, or remove it" if fitting else "correct it")
        taken.update(dict.fromkeys(new, number))
    return taken


def _examples(names):
    """One name of each part of a network."""
    return list({".".join(name.split(".")[:2]): name for name in reversed(names)}.values())[::-1]


def _tell_idle(entries, entry_of, kinds, model):
    trained = {entry_of.get(name) for name, p in model.named_parameters() if p.requires_grad}
    for number, entry in enumerate(entries):
        if number not in trained:
            notice(f"optimizer.groups[{number}] has no effect: what {entry.match!r} fits is frozen")
    for kind in (kind for kind, ids in kinds.items() if not ids):
        notice(f'optimizer.no_decay "{kind}" has no effect: {type(model).__name__} has no such '
               "parameter")


def _of_kinds(kinds, model) -> dict[str, set[int]]:
    """kind -> the ids of its parameters."""
    found: dict[str, set[int]] = {kind: set() for kind in kinds}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            for kind in found.keys() & _kinds(module, name, parameter):
                found[kind].add(id(parameter))
    return found


def _kinds(module, name, parameter):
    kinds = set()
    if is_norm(module):
        kinds.add("norm")
    if name.endswith("bias"):                       # also in_proj_bias of attention
        kinds.add("bias")
    if _POSITION.search(name):
        kinds.add("position")
    if _is_vector(parameter):
        kinds.add("vector")
    return kinds


def _shares_of_layers(decay, model) -> dict[int, tuple[str, float]]:
    """id of a backbone's parameter -> (name of its layer, its rate as a share of the head's)."""
    if decay == 1.0:
        return {}
    layers = backbone_layers(model)
    if not layers:
        raise ConfigError(f"layer_decay is {decay}, but the network has no backbone",
                          "optimizer.layer_decay", "set it to 1")
    return {id(p): (f"layer_{number}", decay ** (len(layers) - number))
            for number, layer in enumerate(layers) for p in layer}


def backbone_layers(model: Any) -> list[list[nn.Parameter]]:
    """The parameters of each layer of a BaseModel's encoder, from the image on.

    A layer is a block of a stage, or a convolution outside of blocks with the norm after it. A
    table that belongs to no layer, such as the positions of a transformer, counts to the first.
    """
    layers: list[list[nn.Parameter]] = []
    for module in model.backbone_modules():
        inner = [module]
        while len(inner) == 1:      # a module around the encoder itself
            module = inner[0]
            inner = [child for child in module.children() if any(True for _ in child.parameters())]
        _add_layers(module, layers)
    return layers


def _add_layers(module, layers):
    """Append the layers of a module that consists of layers."""
    start = len(layers)
    for child in module.children():
        parameters = list(child.parameters())
        if isinstance(child, (nn.Sequential, nn.ModuleList)) or hasattr(child, "blocks"):
            _add_layers(child, layers)
        elif parameters and layers and all(_is_vector(p) for p in parameters):
            layers[-1] += parameters
        elif parameters:
            layers.append(parameters)
    own = list(module.parameters(recurse=False))
    if own and len(layers) == start:
        layers.append([])
    if own:
        layers[start] += own


def _is_vector(parameter):
    """Whether a parameter has one axis, or several of which one is longer than 1 at most."""
    return parameter.ndim != 2 and sum(side > 1 for side in parameter.shape) <= 1
