"""The steps of random models. Each takes what it is drawn with, and a tensor.

The tables say which of them are drawn for which rank, and how often.
"""

from __future__ import annotations

from tests.support.random_models.steps.images import (
    channels_first,
    conv2,
    conv3,
    conv_lstm1,
    conv_lstm2,
    conv_lstm3,
    pool2,
    pool3,
    squeeze_excite,
)
from tests.support.random_models.steps.layers import (
    activation,
    batch_norm,
    dense,
    einsum_dense,
    hashing,
    image_preprocessing,
    layer_norm,
    pre_norm,
    preprocessing,
    refused,
    regularization,
)
from tests.support.random_models.steps.operations import (
    op_binary,
    op_cut,
    op_elementwise,
    op_listed,
    op_move,
    op_normalize,
    op_product,
    op_reduce,
    op_reshape,
    op_stack,
)
from tests.support.random_models.steps.sequences import (
    attention,
    attention_axes,
    bidirectional,
    conv1,
    pool1,
    rnn,
    rnn_states,
    time_distributed,
)
from tests.support.random_models.steps.structure import (
    again,
    branch,
    composite,
    concat_axis,
    dot,
    flatten,
    merge,
    nested,
    permute,
    repeat_vector,
    reshape,
    reshaped_merge,
    reverse_embedding,
    shared,
)

ANY = [
    dense, branch, activation, batch_norm, layer_norm, merge, dense, einsum_dense,
    pre_norm, composite, nested, shared, again, regularization, reshape,
    reshaped_merge, flatten, permute, concat_axis, dot, repeat_vector, refused,
    preprocessing, reverse_embedding,
    op_elementwise, op_binary, op_reduce, op_cut, op_cut, op_move, op_move,
    op_reshape, op_normalize, op_stack, op_product, op_listed, op_listed, hashing,
]  # fmt: skip
SEQUENCES = [rnn, attention, conv1, attention, rnn, rnn_states, bidirectional,
             pool1, time_distributed, conv1, attention, channels_first]  # fmt: skip
IMAGES = [conv2, conv2, conv2, pool2, squeeze_excite, conv_lstm1,
          time_distributed, pool2, channels_first, attention_axes,
          image_preprocessing]  # fmt: skip
VOLUMES = [
    conv3,
    conv3,
    pool3,
    pool3,
    conv_lstm2,
    conv_lstm2,
    time_distributed,
    channels_first,
]
FILMS = [conv_lstm3] * 12 + [time_distributed] * 2
OF_RANK = {3: SEQUENCES, 4: IMAGES, 5: VOLUMES, 6: FILMS}
