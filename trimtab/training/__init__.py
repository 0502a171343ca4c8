"""The program that trains the embedded model."""
