"""The small model that ships with trimtab: a demonstration world whose truth is known."""

from pathlib import Path

EMBEDDED = "embedded"
"""The name that it is loaded by."""
EMBEDDED_FOLDER = Path(__file__).parent / "weights"
"""Its weights, its tokenizer and the record of its training."""
