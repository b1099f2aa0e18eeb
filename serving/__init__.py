"""The BentoML service; imports predict and config of the package, nothing else of it."""
