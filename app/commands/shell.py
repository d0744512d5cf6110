"""What all commands share: settings, a database, arguments and values as operators type them."""

from __future__ import annotations

import contextlib
import io
import logging.config
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from flask import current_app
from flask.cli import with_appcontext

from app.commands.output import show as show
from app.commands.output import show_one as show_one
from app.commands.output import show_value as show_value
from app.commands.output import show_values as show_values
from config import sources
from config.settings import SettingError, Settings, load, unknown_variables

Command = TypeVar("Command", bound=Callable[..., Any])

HELP = "--help"

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class NotFound(click.ClickException):
    """There is no such thing as the argument names."""


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A number and a unit: 90s, 15m, 8h, 30d, 2w. Becomes seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", value)
        if not match:
            self.fail("must be a number and a unit, such as 90s, 15m, 8h, 30d or 2w.", param, ctx)
        seconds = int(match[1]) * _UNITS[match[2]]
        if seconds > 3650 * 86400:
            self.fail("must be at most ten years.", param, ctx)
        return seconds


class Words(click.ParamType):  # type: ignore[type-arg]
    """Text that is not blank: a label, a reason."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("must not be empty.", param, ctx)
        return str(value)


class OperatorCommand(click.Command):
    """A command whose arguments are taken as they are: `-7c41d6` is an id, and so is `--help` if it is the only word.

    What is not one of the command's options is an argument. When arguments are missing, the first words are arguments,
    whatever they look like. `--help` prints the help when nothing has that name.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, self._separated(list(args)))
        except click.UsageError:
            self._help_instead(ctx, args)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NotFound:
            self._help_instead(ctx, list(ctx.params.values()))
            raise

    def _help_instead(self, ctx: click.Context, words: list[Any]) -> None:
        if HELP in words:
            click.echo(ctx.get_help())
            ctx.exit()

    def _separated(self, words: list[str]) -> list[str]:
        """Put the arguments behind a `--`, where click takes them for nothing else."""
        needed = sum(isinstance(param, click.Argument) and param.required for param in self.params)
        if not needed:
            return words
        options, arguments = self._split(words, needed)
        if len(arguments) < needed:
            # Every word looked like an option: the first ones are the arguments, or a `--` that nothing follows.
            is_last = words[-1:] == ["--"]
            arguments, rest = (["--"], words[:-1]) if is_last else (words[:needed], words[needed:])
            options, more = self._split(rest, 0)
            arguments += more
        return [*options, "--", *arguments]

    def _split(self, words: list[str], needed: int) -> tuple[list[str], list[str]]:
        takes_value = {
            name: not (param.is_flag or param.count)
            for param in self.params
            if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)
        }
        options: list[str] = []
        arguments: list[str] = []
        left = iter(words)
        for word in left:
            name, is_assigned, _ = word.partition("=")
            if word == "--":
                arguments += left
            elif word in takes_value:
                options += [word, *([value] if takes_value[word] and (value := next(left, None)) is not None else [])]
            elif (is_assigned and takes_value.get(name)) or (word == HELP and len(arguments) >= needed):
                options.append(word)
            else:
                arguments.append(word)
        return options, arguments


class OperatorGroup(click.Group):
    """A group of such commands."""

    command_class = OperatorCommand


command = partial(click.command, cls=OperatorCommand)
group = partial(click.group, cls=OperatorGroup)


def with_settings(command: Command) -> Command:
    """Run a command with the settings loaded, and its failures as one line on standard error."""

    @with_appcontext
    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _failures():
            settings()
            return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def with_database(command: Command) -> Command:
    """Run a command with the database up: an embedded one is started if it does not run, but never made."""
    return _with_database(command, makes_it=False)


def with_new_database(command: Command) -> Command:
    """The same, but an embedded database is made if there is none."""
    return _with_database(command, makes_it=True)


def settings() -> Settings:
    """The settings of the current command. Raises SettingError."""
    app = current_app
    if "SETTINGS" not in app.config:
        from app.db import database
        from app.telemetry import logging as log_config

        for sentence in unknown_variables():
            click.echo(f"Warning: {sentence}", err=True)
        found = load()
        logging.config.dictConfig(log_config.config(found.log_level))
        app.config["SETTINGS"] = found
        database.init_app(app._get_current_object(), found)  # type: ignore[attr-defined]
    loaded: Settings = app.config["SETTINGS"]
    return loaded


def _with_database(command: Command, makes_it: bool) -> Command:
    @with_appcontext
    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from app.db import owner, reader

        with _failures(), contextlib.ExitStack() as stack:
            url, folder = settings().database_url, settings().data_dir
            if not url:
                from app.dev import embedded

                if not makes_it and not embedded.exists(folder):
                    raise NotFound(
                        f"WATCHPOST_DATABASE_URL is not set {sources.description(os.environ)}, and there is no "
                        f"embedded database in {Path(folder).resolve()}"
                    )
                stack.enter_context(embedded.running(folder))
            stack.callback(owner.close)
            stack.callback(reader.close)
            return command(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn what may go wrong into one line, and let no character end a command that the terminal can't show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except Exception as error:
        text = _explanation(error)
        if text is None:
            raise
        raise click.ClickException(text) from None


def _explanation(error: Exception) -> str | None:
    """A sentence for the operator, or None for a fault of ours."""
    if isinstance(error, SettingError):
        return str(error)
    # Needed only after a failure, and slow to import.
    from app.db import DatabaseError, diagnosis
    from app.dev.programs import EmbeddedError

    if isinstance(error, EmbeddedError):
        return str(error)
    if isinstance(error, DatabaseError):
        return diagnosis.explain(settings(), error)
    return None
