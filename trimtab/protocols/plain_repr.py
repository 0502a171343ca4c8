"""FieldsRepr: a repr that is the same in every process."""

from __future__ import annotations


class FieldsRepr:
    """The class with its fields, as a dataclass has it: a run knows a method again by its repr."""

    def __repr__(self) -> str:
        """Return the class's name with the object's fields."""
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"
