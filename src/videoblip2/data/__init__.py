"""Annotations, the top-5-detail selection, the dataset, and the toy world."""
