"""The `driftline` command.

One module a group of commands; this one puts them together and turns every error of ours into a message and an exit
code. Commands of the model side live beside what they run and come in by the entry-point group `driftline.commands`, under
their name, or under group and name with a dot between: "data.describe" is `driftline data describe`.
"""

import sys
from importlib.metadata import entry_points
from typing import NoReturn

import typer
from rich.console import Console

from streams.cli import (
    backfill,
    data,
    deadletters,
    demo,
    generations,
    model,
    people,
    pipeline,
    serve,
    topics,
    traffic,
    users,
)
from streams.errors import DriftlineError

app = typer.Typer(
    name="driftline",
    help="The streaming engine that keeps every user's interest fresh.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
demo.add_to(app)
serve.add_to(app)
traffic.add_to(app)
people.add_to(app)
pipeline.add_to(app)
backfill.add_to(app)
app.add_typer(users.app)
app.add_typer(topics.app)
app.add_typer(data.app)
app.add_typer(deadletters.app)
app.add_typer(generations.app)
app.add_typer(model.app)
_GROUPS = {"": app, "users": users.app, "topics": topics.app, "data": data.app}
for command in sorted(entry_points(group="driftline.commands"), key=lambda found: found.name):
    group, _, name = command.name.rpartition(".")
    _GROUPS[group].command(name)(command.load())


def main() -> NoReturn:
    """Run the command line; an error of ours ends it with its message and exit code."""
    try:
        app()
    except DriftlineError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_plain(error)}", highlight=False)
        sys.exit(error.exit_code)
    sys.exit(0)


def _plain(error: DriftlineError) -> str:
    return str(error).replace("[", r"\[")
