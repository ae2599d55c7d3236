"""Objectives, the terms of a student's loss. One file each; :mod:`fcot.student.objective` is their interface."""
