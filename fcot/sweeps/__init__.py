"""Sweeps: the plan, one job, the launchers, the ledger. :mod:`fcot.sweep` is the command."""
