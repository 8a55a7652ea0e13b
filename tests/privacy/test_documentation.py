"""Every guarantee in docs/privacy.md and docs/budget.md names a test that exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
DOCUMENTS = {"privacy.md": 30, "budget.md": 10}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_the_document_cites_exists(document):
    text = (TESTS.parent / "docs" / document).read_text(encoding="utf-8")
    cited = 0
    file = None
    for named, test in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", text):
        if named:
            file = TESTS / (named.removeprefix("tests/") if "/" in named else f"privacy/{named}")
            assert file.is_file(), named
        if test:
            assert file is not None
            assert f"def {test}(" in file.read_text(encoding="utf-8"), f"{file.name}::{test}"
            cited += 1
    assert cited >= DOCUMENTS[document]
