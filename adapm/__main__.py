"""`python -m adapm` is the `adapm` command."""

from adapm.cli import main

if __name__ == "__main__":
    main()
