"""The spectrum of gradient noise on networks: along training, across architectures and tasks, and the rule for h/b."""
