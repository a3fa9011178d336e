"""Packages that only some settings and options need, and that are imported when these are used."""
import importlib
from typing import Any

from utils.errors import ConfigError, first_line


def optional_package(name: str, user: str, where: str, fix: str | None = None) -> Any:
    """The package `name`, which is called the same on PyPI, or ConfigError.

    user: what needs it, such as "--push"; where: the option or the key of the config that asks for
    it; fix: None names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{user} needs the package {name}, which cannot be imported: "
                          f"{first_line(error)}", where, fix or f"pip install {name}") from None
