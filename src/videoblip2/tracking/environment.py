"""What a run was computed with: Python, the machine's kind, and every installed package at its version."""

import platform
import sys
from importlib import metadata


def environment_lock() -> str:
    """The environment in the form of a requirements file: a comment on Python and platform, then `name==version`."""
    versions = {dist.name.lower(): dist.version for dist in metadata.distributions() if dist.name}
    head = f"# Python {platform.python_version()} ({sys.implementation.name}), {platform.platform()}"
    return "\n".join([head, *(f"{name}=={version}" for name, version in sorted(versions.items()))]) + "\n"
