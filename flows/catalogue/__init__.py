"""The catalogue: facts about every flow, descent and observer, and the flows that model an optimiser."""
