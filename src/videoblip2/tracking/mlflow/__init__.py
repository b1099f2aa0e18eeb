"""Everything that speaks to MLflow: the store, runs, logged models, and what is read back from them."""
