"""Everything that uses MLflow: the store, runs, logged models, and reading them back."""
