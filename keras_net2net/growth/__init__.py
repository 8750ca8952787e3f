"""Doing a growth to a live model, or undoing it."""
