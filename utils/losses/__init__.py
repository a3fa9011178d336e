"""Losses: modules `(logits (N, C, H, W), target (N, H, W)) -> scalar`, found by name.

logits: any float dtype; target: class ids or `ignore_index` of any integer dtype; the scalar has
the dtype of the logits, but at least float32. Every loss leaves out the pixels labeled
`ignore_index`, never writes to its inputs, and returns a finite value with zero gradient when no
pixel is labeled. Its constructor is the schema of its JSON arguments. Its class attribute
`activation`, "softmax" or "sigmoid", is the function that turns its logits into probabilities;
"scores" is that of a loss for networks that give scores in place of logits (utils.losses.scores).
A loss of an output that does not have one channel per class states their number in `channels`.

A loss that reads several outputs states them in `inputs`, and with `resize` None that they are not
maps of the size of the labels. `reads_values`: it reads values from the device in every step.
"""
from utils.config import registry
from utils.config.build import construct
from utils.errors import ConfigError, unknown


def build_loss(section: str | dict, ignore_index: int = 255, where: str = "loss"):
    """Builds the loss of a config section: "NAME" or {"type": NAME, "args": {...}}.

    where: the position of the section in the config, for messages.
    Raises ConfigError for an unknown name, an unknown or missing argument, and a value that the
    loss does not accept.
    """
    if isinstance(section, str):
        section = {"type": section}
    if not isinstance(section, dict) or "type" not in section:
        raise ConfigError(f'expected a name or {{"type": ..., "args": ...}}, found {section!r}',
                          where)
    extra = sorted(set(section) - {"type", "args"})
    if extra:
        raise ConfigError(unknown("key", extra[0], ("type", "args")), where)
    loss = registry.lookup(section["type"], registry.components("losses"), f"{where}.type")
    args = section.get("args") or {}
    if "ignore_index" in args:
        raise ConfigError("ignore_index is a key of the whole config, not of one loss",
                          f"{where}.args", fix='write "ignore_index" at the top level')
    try:
        return construct(loss, args, f"{where}.args", {"ignore_index": ignore_index},
                         (TypeError, ValueError))
    except ConfigError as error:
        raise ConfigError(error.what, error.where or f"{where}.args", error.fix) from error
