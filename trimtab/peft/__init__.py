"""Tuning: each method fits to an Edit that is measured through the same door as a shift."""
