"""Annotations and questions, `vb2 data prepare`, the top-5-detail selection, and training batches."""
