"""Captioning thousands of videos: which videos, in what order, and the file that stores the results."""
