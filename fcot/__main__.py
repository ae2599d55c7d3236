"""``python -m fcot COMMAND ...``."""

from fcot.cli import main

if __name__ == "__main__":
    main()
