"""`python -m nbmap` is the command `nbmap`: for where that is not on the path."""

from .cli import main

if __name__ == "__main__":  # the workers that it starts import this too
    main(prog_name="nbmap")
