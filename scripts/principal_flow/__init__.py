"""The experiments of Rosca, Wu, Qin & Dherin 2023, arXiv 2302.01952, on toys and on networks at their full spectrum."""
