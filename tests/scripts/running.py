"""Running a script as its command line does."""

from scripts import compare


def run(arguments, capsys, main=compare.main):
    """Exit status, standard output and standard error."""
    try:
        status = main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err
