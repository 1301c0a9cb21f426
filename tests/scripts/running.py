"""What a script said and left, read back."""


def says_in_one_line(said, word):
    """Whether a run's status, output and errors are those of bad input: 2 and one line that has the word."""
    status, _, err = said
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert word in err


def parts(folder):
    """The tensor files of a folder, each with the time of its last change."""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def rows(out, *begin):
    """The lines of a table that begin with these words, as words."""
    return [line.split() for line in out.splitlines() if line.split()[: len(begin)] == list(begin)]
