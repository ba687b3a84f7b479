"""`python -m strop`: the command line without an installed script."""

from strop.cli.main import main

if __name__ == '__main__':
    main()
