"""The small model that ships with trimtab: a demonstration world whose truth is known."""
