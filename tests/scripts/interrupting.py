"""An interrupt at the n-th call of an oracle or of a step, in this process: the same place every time."""

import contextlib
import sys
from pathlib import Path

from flows.engines.storage import load_tensors

ORACLES = {"loss", "losses", "outputs", "grad", "hvp", "third", "expand", "weighted_grad", "example_grads"}
NAMES = ORACLES | {"step", "velocity", "diffusion"}
HOUSE = tuple(str(Path(__file__).parents[2] / floor) for floor in ("landscapes", "nets", "flows"))


class Calls:
    """Counts the calls of these functions, and raises KeyboardInterrupt at the n-th; 0 is never."""

    def __init__(self, n=0):
        self.count, self._n = 0, n
        self._known = {}

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if code not in self._known:
            self._known[code] = code.co_name in NAMES and code.co_filename.startswith(HOUSE)
        if self._known[code]:
            self.count += 1
            if self.count == self._n:
                raise KeyboardInterrupt


@contextlib.contextmanager
def interrupt_at(n):
    """Inside, the n-th of these calls is the user's Ctrl-C."""
    calls, before = Calls(n), sys.gettrace()
    sys.settrace(calls)
    try:
        yield calls
    finally:
        sys.settrace(before)


def contents(folder):
    """All that is in a folder, figures excepted, by path: text, and the bits of tensors."""
    files = [path for path in folder.rglob("*") if path.suffix != ".png" and path.name != ".lock" and path.is_file()]
    return {str(path.relative_to(folder)): bits(path) for path in files}


def bits(path):
    """A file to its last bit, but for the order in which safetensors has written its entries."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    tensors, text = load_tensors(path.parent, path.stem)
    return text, {name: (x.dtype, x.shape, x.resolve_conj().numpy().tobytes()) for name, x in tensors.items()}
