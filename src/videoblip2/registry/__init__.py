"""The model registry: versions of `videoblip2`, the alias `champion` that serving follows, and the gate in front of it.

`promote` holds the gate, `rollback` the way back, `lineage` and `reproduce` say where a model came from and make it
again. Aliases, never stages. MLflow is imported inside the functions, never with this package.
"""

from videoblip2.registry.versions import CHAMPION, NAME, champion, register, set_champion

__all__ = ["CHAMPION", "NAME", "champion", "register", "set_champion"]
