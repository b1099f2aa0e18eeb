"""Videos in, features out: decoding, the CLIP and CLAP encoders, and the store that the dataset reads."""
