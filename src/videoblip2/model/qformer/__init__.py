"""The Q-Formers' weights: fetch them, inspect a file, and load BLIP-2's with an account of every tensor."""
