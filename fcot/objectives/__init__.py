"""Objectives: what a student's loss is. One file each; :mod:`fcot.student.objective` says what they offer."""
