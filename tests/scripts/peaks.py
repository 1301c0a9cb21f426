"""What a process of its own runs in the tests: a module that is quick to import."""

from scripts.lab.measuring import peak_bytes


def put_peak(queue):
    queue.put(peak_bytes())
