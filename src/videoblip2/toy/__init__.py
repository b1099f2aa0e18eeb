"""The toy world: generated videos with sound, captions and questions, small encoders and a small language model."""
