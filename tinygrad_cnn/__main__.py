"""`python -m tinygrad_cnn` is `tinygrad-cnn`."""

from .cli import main

if __name__ == "__main__":
    main()
