"""The documentation of the settings is made from the settings."""

from pathlib import Path

from unfreeze.cli.settings_page import document

PAGE = Path(__file__).parents[2] / "docs" / "SETTINGS.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == document(), "run `make docs`"
