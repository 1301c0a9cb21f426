"""SGD against its stochastic differential equations, experiment by experiment."""
