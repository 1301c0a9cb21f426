"""Parts shared by the experiments: command line, store, networks, landscapes and models by name."""
