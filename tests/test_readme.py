"""README.md as its readers use it: its Python runs, its commands exist."""

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="README.md is not beside the tests")


def blocks(language):
    """The code blocks of a language, each behind so many empty lines that its lines have their numbers in the file."""
    text = README.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def test_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def commands():
    """The commands of the shell blocks and those that the text names, as lists of words."""
    for line in "\n".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]
    for named in re.findall(r"`(fastrnn [^`]+)`", README.read_text(encoding="utf-8")):
        yield shlex.split(named)


def test_commands_exist(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    seen = set()
    for command, *arguments in commands():
        seen.add(command)
        if command == "pip":
            action, target = arguments
            extras = re.fullmatch(r"\.(?:\[(.+)\])?", target)[1]
            assert action == "install"
            assert set(extras.split(",") if extras else ()) <= project["optional-dependencies"].keys()
        elif command in project["scripts"]:
            module, function = project["scripts"][command].split(":")
            main = getattr(importlib.import_module(module), function)
            with pytest.raises(SystemExit) as ended:  # the help is printed once the words before it are understood
                main([*arguments, "--help"])
            assert ended.value.code == 0, capsys.readouterr().err
        else:
            assert importlib.util.find_spec(command), f"{command} is no command of fastrnn and no module"
    assert {"pip", "fastrnn"} <= seen
