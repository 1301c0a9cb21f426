"""What tests of scripts share: running one as its command line does."""

import pytest


@pytest.fixture
def run(capsys):
    """``run(main, arguments)``: exit status, standard output and standard error of a script's ``main``."""

    def run_main(main, arguments):
        try:
            status = main(arguments.split())
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_main
