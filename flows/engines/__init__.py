"""The engines that run flows and descents, and what they share: steps, noise paths, recorder, trajectory."""
