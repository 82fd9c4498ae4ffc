"""Names of classes as somebody might choose them who means no good, or whose alphabet is another."""

from bestrun.terminal import CONTROLS

TAGS = "<script>alert('1')</script><img src=x onerror=alert(2)>"
HOSTILE = (
    "\x1b[31mred\x1b]0;owned\x07",  # a terminal's commands
    "two\nlines\r\nrun       forged",
    TAGS,
    "$x_1$ \\frac{",  # Matplotlib's formulas
    "long " * 60,
    "שלום\u202eabc",  # from right to left, and a turn of direction
    "emoji 👩\u200d🔬 中文",
    "![a](javascript:alert(1)) | `b` **c**",  # Markdown
    "a\u0300\u0301\u0302\u0303" * 20,
    "\udcff half a surrogate pair",
)


def assert_tame(text: str) -> None:
    """No control character, no line of a name's own, no half of a surrogate pair in what was printed."""
    assert not CONTROLS.search(text.replace("\n", "").replace("\r", "CR")), ascii(text)
    assert not any(line.startswith(("lines", "run       forged")) for line in text.splitlines()), ascii(text)
    text.encode()
