"""Every guarantee in docs/privacy.md names a test that exists."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
DOCUMENT = TESTS.parent / "docs" / "privacy.md"


def test_every_test_that_the_document_cites_exists():
    cited = 0
    file = None
    for named, test in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", DOCUMENT.read_text(encoding="utf-8")):
        if named:
            file = TESTS / (named if "/" in named else f"privacy/{named}")
            assert file.is_file(), named
        if test:
            assert file is not None
            assert f"def {test}(" in file.read_text(encoding="utf-8"), f"{file.name}::{test}"
            cited += 1
    assert cited >= 30
