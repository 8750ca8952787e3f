"""Wider: more units, as copies, fresh ones, or chosen by gradient."""
