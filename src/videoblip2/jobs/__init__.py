"""Captioning thousands of videos: the videos, their order, and the file of results."""
