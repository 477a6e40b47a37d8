"""The table of docs/adapters.md is the one that the code decides by."""

from house.checkout import ROOT

from polygraft.adapters.features import FEATURES, Status, between_marks, markdown


def test_the_page_has_the_present_table() -> None:
    page = (ROOT / "docs/adapters.md").read_text()
    assert page == between_marks(page), "run scripts/generate-adapter-features"
    assert markdown() in page


def test_whatever_is_refused_says_what_to_do() -> None:
    for row in FEATURES:
        if row.status is Status.REFUSED:
            words = ("retrain", "convert", "save", "train on", "target", "merge", "not served")
            assert any(word in row.text.lower() for word in words), row.name
