"""What messages and help say to type can be typed: the verb is there, and so is each option."""

import ast
import re
from pathlib import Path

import bestrun
from bestrun.cli.main import cli

HINT = re.compile(r"\bbestrun ([a-z]+)((?: +[^\s`;,)]+)*)")
SOURCES = sorted(Path(bestrun.__file__).parent.rglob("*.py"))
WORDS = {"and", "asks", "checkpoint", "is"}  # of a sentence about bestrun, behind its name


def hints(text: str) -> list[tuple[str, list[str]]]:
    """(verb, options) of each `bestrun VERB ...` in the texts of a source file; what is filled in later is a word."""
    found = []
    tree = ast.parse(text)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        said = ""
        if isinstance(node, ast.JoinedStr):
            said = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            said = node.value
        for verb, rest in HINT.findall(said):
            found.append((verb, re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)))
    return found


def test_every_command_that_a_message_or_a_help_text_names_can_be_typed():
    followed = 0
    for path in SOURCES:
        for verb, options in hints(path.read_text("utf-8")):
            if verb in WORDS:
                continue
            assert verb in cli.commands, f"{path.name}: bestrun {verb}"
            known = {name for parameter in cli.commands[verb].params for name in parameter.opts} | {"--help"}
            unknown = [option for option in options if option not in known]
            assert not unknown, f"{path.name}: bestrun {verb} {' '.join(options)}"
            followed += 1
    assert followed > 60, followed


def test_the_search_sees_what_cannot_be_typed():
    assert hints("print('then: bestrun resum r --forse')") == [("resum", ["--forse"])]
    assert hints("print(f'type bestrun restore {run} --local')") == [("restore", ["--local"])]
