"""How things are written for people."""

import unicodedata

from rich.cells import cell_len

from bestrun.formatting import text_table, text_width


def test_cells_stand_below_each_other_whatever_their_characters_take():
    assert [text_width(text) for text in ("", "abc", "日本", "e\N{COMBINING ACUTE ACCENT}")] == [0, 3, 4, 1]
    for text in ("日本", "e\N{COMBINING ACUTE ACCENT}", "각", "😀", "ﾊ", "\u05d0\u05b0"):
        assert text_width(text) == cell_len(text), text
    rows = [["run", "ID", "best"], ["日本", "a", "9.5"], ["one", "bcd", "10"]]
    lines = text_table([*rows[:1], ["  a title as long as it likes"], *rows[1:]], right={2})
    assert lines == ["run   ID   best", "  a title as long as it likes", "日本  a     9.5", "one   bcd    10"]
    ends = [
        sum(2 if unicodedata.east_asian_width(one) == "W" else 1 for one in line)
        for line in lines
        if "title" not in line
    ]
    assert set(ends) == {15}


def test_a_table_of_nothing_but_titles_is_those():
    assert text_table([["nothing"]]) == ["nothing"] and text_table([]) == []
