"""Both training stages: cross-entropy (`ce`) and self-critical (`scst`), and the pieces that both use."""
