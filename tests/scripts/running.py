"""Running a comparison as its command line does."""

from scripts.compare import main


def run(arguments, capsys):
    """Exit status, standard output and standard error."""
    try:
        status = main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err
