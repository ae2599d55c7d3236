"""Requests to a language model and what comes back, for teachers and API-backed students alike."""
