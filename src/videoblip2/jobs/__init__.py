"""Caption thousands of videos: in batches, by segments, on several machines, into one file."""
