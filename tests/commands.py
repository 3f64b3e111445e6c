"""The command line in the process of the test."""

from typer.testing import CliRunner

from edgenes.cli.main import app
from edgenes.core import EdgenesError


def run_command(*arguments):
    """What a command prints on stdout and on stderr, where it succeeds."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refusal(*arguments):
    """The one line with which a command refuses."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, EdgenesError), (result.output, result.exception)
    return str(result.exception)
