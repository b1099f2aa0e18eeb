"""The model registry: versions of `videoblip2`, the alias `champion` that serving follows, and the gate in front of it.

`promote` runs the gate, `rollback` undoes a promotion, `lineage` and `reproduce` trace a model and train it
again. Aliases, never stages. MLflow is imported inside the functions, never with this package.
"""
