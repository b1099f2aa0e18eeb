"""Both training stages: cross-entropy (`ce`) and self-critical (`scst`), and the parts they share."""
