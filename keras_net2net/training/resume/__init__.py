"""Going on after a kill: the log of growths, and replaying it."""
