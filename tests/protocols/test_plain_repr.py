"""What a class of a user's own, that is no dataclass, is known by."""

from __future__ import annotations

import pytest

from trimtab.protocols import Control, Edit, Method


@pytest.mark.parametrize("base", [Method, Control, Edit])
def test_a_plain_class_is_known_by_its_fields_in_every_process(base):
    given = dict.fromkeys(base.__abstractmethods__, lambda self: None)
    plain = type("Plain", (base,), {**given, "__init__": lambda self, size: setattr(self, "size", size)})
    assert repr(plain(1)) == repr(plain(1)) == "Plain(size=1)" != repr(plain(2))
    assert repr([plain(1)]) == "[Plain(size=1)]"  # as among the parts of a stack
