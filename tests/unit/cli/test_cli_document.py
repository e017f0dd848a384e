"""docs/cli.md and the help speak of every command."""

from pathlib import Path

import click

from tmem.cli import app
from tmem.cli.base.session import Leaf

DOCUMENT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()


def leaves(group: click.Group, path: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= leaves(command, f"{path}{name} ")
        else:
            found[path + name] = command
    return found


def test_every_command_and_option_is_in_the_document() -> None:
    commands = leaves(app.root)
    assert len(commands) == 33
    assert [name for name in commands if name not in DOCUMENT] == []
    options = [option.opts[0] for option in app.root.params if isinstance(option, click.Option)]
    assert [option for option in options if f"`{option}`" not in DOCUMENT] == []


def test_every_command_takes_server_and_json_and_says_what_it_does() -> None:
    for name, command in leaves(app.root).items():
        assert isinstance(command, Leaf), name
        assert command.get_short_help_str(100), name


def test_every_command_is_in_one_section_of_the_help() -> None:
    sections = [name for names in app._SECTIONS.values() for name in names]
    assert sorted(sections) == sorted(app.root.commands)
