"""The demonstration behind `python -m keras_net2net`, written as a user would write it.

One file per part: what can be asked for (`options`), the data (`data`), the network (`network`),
the two runs (`training`), what they show (`table`, `plot`), and the order of it all (`main`).
"""
