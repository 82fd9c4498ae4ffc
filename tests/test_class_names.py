"""Names of classes: fit for use where they come in, short where they are shown, and nothing where they say nothing."""

import numpy as np
import pytest

from bestrun import class_names
from bestrun.class_names import cleaned, labels, listed, recorded, usable
from bestrun.formatting import shortened, text_width
from support.hostile_names import HOSTILE, assert_tame


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_from_outside_is_one_short_line_without_commands(name):
    text = cleaned(name)
    assert_tame(text)
    assert 0 < len(text) <= class_names.MAX_LENGTH and cleaned(text) == text
    assert "\n" not in text and "\t" not in text and text == text.strip()


def test_one_name_in_two_spellings_of_unicode_is_one_name():
    assert (
        cleaned("A\u0308pfel") == cleaned("\u00c4pfel") and cleaned(" ring-tailed\u3000 cat\r\n") == "ring-tailed cat"
    )
    with pytest.raises(ValueError, match="2 classes are called Äpfel"):
        usable(["A\u0308pfel", "\u00c4pfel"], 2)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "no list of texts"), ("ab", "no list of texts"), (["a", 2], "no list of texts"),
        (["a"], "1 names for 2 classes"), (["a", "b", "c"], "3 names for 2 classes"),
        (["a", "a"], "2 classes are called a"),
        (["a", " \t"], "the name of class 1 is empty"), (["\u200b\u200d", "a"], "the name of class 0 is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_names_says_why_and_a_record_of_it_has_none(values, reason):
    with pytest.raises(ValueError, match=reason):
        usable(values, 2)
    assert recorded({"class_names": values, "num_classes": 2}) is None


@pytest.mark.parametrize(
    "data", [None, [], "{}", {}, {"class_names": ["a", "b"]}, {"class_names": ["a"], "num_classes": "1"}]
)
def test_a_record_that_says_nothing_of_names_has_none(data):
    assert recorded(data) is None


def test_names_of_a_megabyte_together_are_none():
    many = [f"{'x' * 90}{number}" for number in range(20_000)]
    with pytest.raises(ValueError, match="more than 1,048,576 characters"):
        usable(many, len(many))
    assert usable(many[:1000], 1000) == tuple(many[:1000])


def test_names_that_are_the_numbers_say_nothing_and_others_do():
    assert usable([str(number) for number in range(10)], 10) is None
    assert usable([str(number) for number in range(1, 13)], 12) == tuple(map(str, range(1, 13)))


def test_a_class_without_a_name_is_its_number():
    assert labels(None, 3) == ["0", "1", "2"] and labels(("a", "b"), 2) == ["a", "b"]


def test_shown_names_fit_their_columns_and_no_two_look_the_same():
    names = (*(f"sulphur-crested cockatoo of kind {number}" for number in range(12)), "日本" * 30, "cat")
    shown = labels(names, len(names), 20)
    assert all(text_width(text) <= 20 for text in shown) and len(set(shown)) == len(names)
    assert shown[3].endswith("… 3") and shown[-2] == "日本日本日本日本日…" and shown[-1] == "cat"


@pytest.mark.parametrize(
    "text", ["日本語", "e\N{COMBINING ACUTE ACCENT}" * 5, "👩\u200d🔬👩\u200d🔬", *map(cleaned, HOSTILE)]
)
def test_a_text_is_cut_at_a_whole_character(text):
    for columns in range(1, text_width(text)):
        short = shortened(text, columns)
        assert short.endswith("…") and text_width(short) <= columns and text.startswith(short[:-1])
        assert not short[:-1].endswith(("\u200d", " "))
    assert shortened(text, text_width(text)) == text


def test_a_line_of_names_says_how_many_more_there_are():
    assert listed(("a", "b", "c"), 7) == "a, b, c"
    assert listed(("a", "b", "c"), 6) == "3 names"
    assert listed(tuple(f"class {number}" for number in range(1000)), 40) == "class 0, class 1, class 2 and 997 more"
    for columns in range(10, 60):
        assert text_width(listed(tuple(map(cleaned, HOSTILE)), columns)) <= columns


def test_a_file_of_names_gives_them_back_and_anything_else_gives_none():
    names = tuple(map(cleaned, HOSTILE))
    assert class_names.from_json(class_names.to_json(names), len(names)) == names
    for content in (b"", b"{}", b"[1, 2]", b'["a"]', b"\xff", b"[" * 100_000, b'["a", "a"]', b"null", b"NaN"):
        assert class_names.from_json(content, 2) is None


def test_numpy_s_text_is_no_obstacle():
    assert usable(np.array(["cat", "dog"]).tolist(), 2) == ("cat", "dog")
