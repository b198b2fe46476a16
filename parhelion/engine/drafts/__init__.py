"""Guessing ahead, whichever worker does it: who guesses, for which rows, and how far a draft model has come."""
