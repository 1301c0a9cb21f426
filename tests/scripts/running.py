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


def says_in_one_line(said, word):
    """Whether a run's status, output and errors are those of bad input: 2 and one line that has the word."""
    status, _, err = said
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert word in err
