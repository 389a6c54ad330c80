"""What the README says was measured, where it can be measured again in a minute."""

from tests.conftest import ROOT, make


def test_the_table_in_the_readme_is_what_the_sdk_does() -> None:
    make(ROOT, "table", "CHECK=--check")
