"""`python -m edgenes`."""
from edgenes.cli import main

if __name__ == "__main__":
    main()
