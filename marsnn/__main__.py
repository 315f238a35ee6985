"""`python -m marsnn` is the command line."""

from marsnn.cli.main import run

if __name__ == "__main__":
    run()
