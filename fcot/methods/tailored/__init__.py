"""Paper B's words: exam, feedback, self-reflection. Pure functions; the stages of a round are in :mod:`fcot.methods.tailored.stages`."""
