"""A user's own modules, installed or in the current folder: metrics, rewards and modalities; see docs/how-to."""

import os
import pkgutil
import sys
from typing import Any

from videoblip2.errors import refused

PLUGINS = "VB2_PLUGINS"


def load_own(name: str, place: str) -> Any:
    """A module, or an object in one (`package.module:function`). Raises InputError naming `place` if it cannot."""
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    remedy = "install or define it, or start in its folder"
    with refused(f"{place}: {name!r} cannot be imported", remedy, Exception):  # the module may raise anything
        try:
            return pkgutil.resolve_name(name)
        except SystemExit as end:
            if type(end) is not SystemExit:  # SIGTERM's
                raise
            raise ImportError(f"it calls sys.exit({end})") from end


def load_plugins() -> None:
    """Import the modules that VB2_PLUGINS names, separated by commas; they add entries to the tables."""
    for name in filter(None, os.environ.get(PLUGINS, "").replace(" ", "").split(",")):
        load_own(name, PLUGINS)
