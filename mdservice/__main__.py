"""``python -m mdservice``."""

from mdservice.cli import main

if __name__ == "__main__":
    main()
