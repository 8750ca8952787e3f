"""All that the library touches of Keras beyond its public interface, and nothing of its own.

Keras has no public way to change a model after it was built, so growing one in
place needs some of its internals. They all stand in this room, by topic, each with
the reason, so that a new version of Keras is checked in one place. Seen working from Keras
3.10 to 3.15 on TensorFlow, JAX and PyTorch. The names here are its door: the other rooms say
`internals.named_variables(layer)`.
"""

from keras_net2net.internals.attention import *
from keras_net2net.internals.calls import *
from keras_net2net.internals.compiled import *
from keras_net2net.internals.fitting import *
from keras_net2net.internals.graphs import *
from keras_net2net.internals.layers import *
from keras_net2net.internals.models import *
from keras_net2net.internals.operations import *
from keras_net2net.internals.optimizers import *
from keras_net2net.internals.saving import *
from keras_net2net.internals.slots import *
from keras_net2net.internals.state import *
from keras_net2net.internals.tracking import *
from keras_net2net.internals.variables import *
