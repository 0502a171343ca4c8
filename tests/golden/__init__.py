"""The golden record: what the package computed before it was rebuilt, and the check against it (see record.py)."""
