"""What `check_data` refuses before any weights are read, each with the setting to change."""

from __future__ import annotations

import pytest

from jaxalign import build
from jaxalign.build.model import settled
from jaxalign.errors import ModelError


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"model__path": "./nowhere"}, "model.path"),
        ({"model__tokenizer": "./nowhere"}, "model.tokenizer"),
    ],
)
def test_a_missing_folder_is_told_with_its_setting(changes, option, configure):
    with pytest.raises(ModelError, match=f"^{option}: './nowhere' does not exist"):
        build.check_data(settled(configure(**changes)))
