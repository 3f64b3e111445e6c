"""The command line as `python -m edgenes`."""

from edgenes.cli.main import main

if __name__ == "__main__":
    main()
