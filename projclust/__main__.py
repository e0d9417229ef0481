"""`python -m projclust`, which launchers such as torchrun can start."""

from projclust.cli import main

if __name__ == "__main__":
    main()
