"""Grows a model with the package that is installed, not with that of the checkout."""

import keras
import numpy as np

import keras_net2net as n2n

assert "site-packages" in n2n.__file__, n2n.__file__
layers = [keras.Input((4,)), keras.layers.Dense(8, name="fc"), keras.layers.Dense(1)]
model = keras.Sequential(layers)
model.compile("adam", "mse")
growth = n2n.GrowthScheduler({1: [n2n.Wider("fc", 12), n2n.Deeper("fc", form="auto")]}, seed=0)
model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, callbacks=[growth], verbose=0)
assert model.get_layer("fc").units == 12
assert growth.history[0].difference < 1e-5
