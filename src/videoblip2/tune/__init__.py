"""Studies over configuration keys: for training stages, and for decoding. Optuna is imported nowhere else."""
