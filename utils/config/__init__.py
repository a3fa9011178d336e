"""Reads and checks configs and builds what they name; these are the names for other rooms.

Inside this room import from the modules: importing this file imports all of them.
"""
from utils.config.build import build, split_args
from utils.config.docs import json_schema, list_text
from utils.config.load import (
    LoadedConfig,
    apply_overrides,
    load_config,
    save_config,
    with_config,
)
from utils.config.schema import resolve_config

__all__ = ["LoadedConfig", "apply_overrides", "build", "json_schema", "list_text", "load_config",
           "resolve_config", "save_config", "split_args", "with_config"]
