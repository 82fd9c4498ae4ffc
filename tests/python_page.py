"""`python -m tests.python_page` writes docs/python.md anew: the public names with their signatures and docstrings."""

import inspect
import textwrap
from pathlib import Path

import bestrun
from bestrun import api

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
HEAD = """# From Python

Everything here is `import bestrun` away; nothing heavy is imported until it is used. A user's mistake is a
`bestrun.errors.BestrunError` with the line that the command would print.

```python
import bestrun

run = bestrun.train("recipe=quick", "seed=1", quiet=True)  # the words of `bestrun train`
print(run.state, run.best["val/accuracy"], "at step", run.best["step"])

history = run.history()  # a DataFrame, a row an evaluation
print(history["val/loss"].min())

again = bestrun.load_run(run.name)  # or its MLflow run ID, latest, best
print(again.restore()["test"]["accuracy"])
```

What follows is made from the code: `python -m tests.python_page` writes this page anew.
"""


def page() -> str:
    parts = [HEAD]
    for name in sorted(bestrun.__all__, key=lambda name: (name == "Run", name)):
        parts.append(_described(name, getattr(bestrun, name)))
    for name, member in vars(api.Run).items():
        if not name.startswith("_"):
            parts.append(_described(f"Run.{name}", member))
    return "\n".join(parts)


def _described(name: str, thing: object) -> str:
    thing = getattr(thing, "func", thing)  # of a cached property
    if isinstance(thing, property):
        thing = thing.fget
        shown = f"{name} -> {inspect.signature(thing).return_annotation}"
    elif inspect.isclass(thing):
        shown = f"class {name}"
    else:
        shown = f"{name}{inspect.signature(thing)}".replace("(self, ", "(").replace("(self)", "()")
    shown = textwrap.fill(shown.replace("'", ""), 100, subsequent_indent="    ")  # annotations are texts
    return f"## `{name}`\n\n```python\n{shown}\n```\n\n```text\n{inspect.getdoc(thing)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
