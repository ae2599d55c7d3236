"""Tailored learning (paper B): exam, feedback and self-reflection. The stages of a round are in :mod:`fcot.methods.tailored.stages`."""
