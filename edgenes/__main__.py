"""The command line, as `edgenes` and as `python -m edgenes`."""

import sys


def main() -> None:
    """Runs the command of sys.argv, and ends quietly where Ctrl-C comes while it is loaded."""
    try:
        from edgenes.cli.main import main as run_command
    except KeyboardInterrupt:
        print("edgenes: stopped", file=sys.stderr)
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    main()
