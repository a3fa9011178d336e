"""Loads weights of other repositories: renames their keys to ours and adapts their values.

rename_keys.py    the mechanism: applies (pattern, replacement) rules to the keys of a state
                  dict, and folds in-place activated norms into plain batch norms
published.py      the published checkpoints: `Published` describes the files of one network;
                  the table PUBLISHED in each file of models/ and models/backbones/ lists them
openseg.py        the rules and entries that openseg's networks share
start_weights.py  `StartsFromFiles`, a base class for networks that can be fine-tuned from any
                  of these files (trainer.finetune_from)

The rules of one network are in its own file in models/, those of an encoder in
models/backbones/, and those of a shared head in models/layers/ (tables named *_KEYS).
"""
