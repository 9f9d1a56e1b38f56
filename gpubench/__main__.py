"""`python -m gpubench`."""

from gpubench.cli.main import main

if __name__ == "__main__":
    main()
