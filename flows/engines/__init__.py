"""The engines that run flows and descents: steps, noise paths, recorder, trajectory."""
