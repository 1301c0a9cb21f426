"""What the experiments share: command line, store, networks, landscapes and models by name."""
