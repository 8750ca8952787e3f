"""All that the library touches of Keras beyond its public interface, and nothing of its own.

Keras has no public way to change a model after it was built, so growing one in
place needs some of its internals. They all stand in this room, by topic, each with
the reason, so that a new version of Keras is checked in one place. Seen working from Keras
3.10 to 3.15 on TensorFlow, JAX and PyTorch. The names here are its door: the other rooms say
`internals.named_variables(layer)`.
"""

from keras_net2net.internals.attention import Attention, attention_has_one_size, attention_of
from keras_net2net.internals.calls import (
    calls_watched,
    losses_counted,
    mask_of,
    position_of_training,
    recorded_inputs,
    specs_by_call,
    takes_training,
    unrecorded,
)
from keras_net2net.internals.compiled import become, compiled_parts
from keras_net2net.internals.fitting import (
    callbacks_beside,
    fit_batches,
    flat_callbacks,
    has_swapped,
    is_better_upwards,
    running_callbacks,
    running_lists,
    set_swapped,
    swap_averages,
    write_growth,
)
from keras_net2net.internals.graphs import (
    function_of,
    input_layer,
    insert_into_sequential,
    maker_of,
    new_tensor,
    nodes_between,
    nodes_of,
    nodes_of_layer,
    record_call,
    set_arguments,
    set_graph,
    set_input_shape,
    set_shape,
    structures_of,
    track_layers,
)
from keras_net2net.internals.layers import (
    ConvLSTMCell,
    all_layers,
    build_shapes,
    build_with_values,
    has_build,
    is_keras_layer,
    is_keras_regularizer,
    name_like,
    rebuild,
    recorded_arguments,
    set_build_shapes,
    sublayers,
)
from keras_net2net.internals.models import (
    containers_changed,
    forget_functions,
    has_no_call,
    held_models,
    is_first_process,
    new_functional,
    new_lambda,
    new_sequential,
    own_attributes,
    process_count,
    sync_state,
    variable_scope,
)
from keras_net2net.internals.operations import (
    is_called_once,
    is_keras_operation,
    operation_classes,
    operation_key,
    set_setting,
)
from keras_net2net.internals.optimizers import (
    copy_optimizer_state,
    exclude_from_decay,
    held_optimizers,
    learning_rate_of,
    optimizer_parts,
    optimizer_variables,
    reset_optimizer,
    set_learning_rate,
    set_steps_done,
    steps_done,
    steps_of,
    without_decay,
)
from keras_net2net.internals.saving import (
    backing_up_to,
    backup_files,
    earlier_backup_files,
    epoch_to_save,
    resumes_at,
    save_backups_with,
    saved_shapes,
)
from keras_net2net.internals.slots import DERIVED, WEIGHT, Slot, SlotKind, slots_of
from keras_net2net.internals.state import set_values, state_parts, values_of
from keras_net2net.internals.tracking import keras_untracked, unwrapped
from keras_net2net.internals.variables import (
    named_variables,
    own_trainable,
    own_variables,
    read_variable,
    recurrent_states,
    set_variable,
)
