"""What the tests of distribution run in processes of their own: devices are set before a start.

    python -m tests.distributed KIND OUTPUT [RANK PORT...]

Each kind trains a model, grows it and trains on, and writes what came of it as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any


def operations() -> list[Any]:
    import keras_net2net as n2n

    return [n2n.Wider("fc", 12), n2n.Deeper("fc")]


def model(units: int = 8, deeper: bool = False) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4,))
    x = layers.Dense(units, activation="relu", name="fc")(x)
    if deeper:
        x = layers.Dense(units, activation="relu", name="fc_deeper_1")(x)
    x = layers.BatchNormalization(name="bn")(x)
    made = keras.Model(inputs, layers.Dense(4, name="out")(x))
    made.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return made


def data() -> Any:
    import numpy as np

    numbers = np.random.default_rng(0)
    return tuple(numbers.standard_normal((32, 4)).astype("float32") for _ in range(2))


def values(variables: Any) -> list[Any]:
    import keras

    return [keras.ops.convert_to_numpy(v) for v in variables]


def digest(variables: Any) -> str:
    found = hashlib.sha256()
    for value in values(variables):
        found.update(repr(value.shape).encode() + value.tobytes())
    return found.hexdigest()


def all_variables(grown: Any) -> list[Any]:
    return [*grown.variables, *grown.optimizer.variables]


def fit_with_growth(made: Any, seed: int | None = 0) -> dict[str, Any]:
    """Grows within `fit`, and says what the weights were and are."""
    import keras

    import keras_net2net as n2n

    seen: dict[str, Any] = {}

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                seen["grown"] = digest(self.model.variables)
                seen["split"] = [v.path for v in all_variables(self.model) if not same(v)]

    growth = n2n.GrowthScheduler({1: operations()}, seed=seed, verbose=0)
    x, y = data()
    callbacks = [growth, Watch()]
    history = made.fit(
        x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=callbacks
    )  # fmt: skip
    (report,) = growth.history
    return seen | {
        "seed": report.plan.seed,
        "difference": report.difference,
        "losses": history.history["loss"],
        "trained": digest(made.variables),
        # On TensorFlow, each replica keeps the statistics of its own batches, as it always does.
        "parted": [v.path for v in all_variables(made) if not same(v) and "moving" not in v.path],
        "shapes": [list(v.shape) for v in made.variables],
        "weights": [value.tolist() for value in values(made.variables)],
    }


def same(variable: Any) -> bool:
    """Whether a variable has one value on all devices of this process."""
    import keras
    import numpy as np

    value = variable._value
    if keras.backend.backend() == "jax":
        whole = np.asarray(value)
        return all(np.array_equal(s.data, whole[s.index]) for s in value.addressable_shards)
    copies = [np.asarray(copy) for copy in getattr(value, "values", [value])]
    return all(np.array_equal(copy, copies[0]) for copy in copies)


def mirrored() -> dict[str, Any]:
    import tensorflow as tf

    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        made = model()
    found = fit_with_growth(made)
    copies = {len(v._value.values) for v in made.variables if hasattr(v._value, "values")}
    return found | {"replicas": strategy.num_replicas_in_sync, "copies": sorted(copies)}


def multi_worker(rank: int, *ports: str) -> dict[str, Any]:
    workers = [f"127.0.0.1:{port}" for port in ports]
    cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(cluster)
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        made = model()
    import keras_net2net as n2n

    x, y = (tf.constant(array[rank::2]) for array in data())

    def train() -> list[float]:
        # Keras's own `fit` and `train_on_batch` fail with more than one worker, at the first
        # batch and at its loss: this is the loop that TensorFlow documents.
        @tf.function
        def step() -> Any:
            return strategy.run(lambda: made.train_step((x, y))["loss"])

        return [float(strategy.experimental_local_results(step())[0]) for _ in range(5)]

    losses = train()
    report = n2n.grow(made, operations())
    grown = digest(made.trainable_variables)
    losses += train()
    return {
        "replicas": strategy.num_replicas_in_sync,
        "seed": report.plan.seed,
        "difference": report.difference,
        "losses": losses,
        "grown": grown,
        "trained": digest([*made.trainable_variables, *made.optimizer.variables]),
        "shapes": [list(v.shape) for v in made.variables],
    }


def sharded() -> dict[str, Any]:
    import keras
    import numpy as np

    devices = keras.distribution.list_devices()
    found: dict[str, Any] = {"devices": len(devices)}
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    found["data"] = fit_with_growth(model())
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["fc.*/kernel"] = (None, "model")
    layout["fc.*/bias"] = ("model",)
    layout["out/kernel"] = ("model", None)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )
    made = model()
    found["model"] = fit_with_growth(made)
    native = model(12, deeper=True)
    native.optimizer.build(native.trainable_variables)

    def layouts(of: Any) -> list[str]:
        return [f"{v.shape} {v._value.sharding.spec}" for v in all_variables(of)]

    found["layouts"] = [layouts(made), layouts(native)]
    # A size that the mesh can't divide is refused, and nothing has changed.
    import keras_net2net as n2n

    before = digest(all_variables(made))
    try:
        n2n.grow(made, n2n.Wider("fc", 13), seed=0)
    except Exception as error:
        found["refused"] = f"{type(error).__name__}: {error}"
    found["untouched"] = before == digest(all_variables(made))
    made.fit(*data(), batch_size=8, verbose=0)
    assert np.isfinite(made.evaluate(*data(), batch_size=8, verbose=0))
    return found


def parallel(rank: int, port: str) -> dict[str, Any]:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import keras_net2net as n2n

    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    made = model()
    x, y = (torch.from_numpy(array)[rank::2] for array in data())

    def train() -> tuple[float, str]:
        wrapped = DistributedDataParallel(made)
        optimizer = torch.optim.Adam(wrapped.parameters(), 0.01)
        for _ in range(5):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(wrapped(x, training=True), y)
            loss.backward()
            optimizer.step()
        count = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        assert count == sum(p.numel() for p in made.parameters() if p.requires_grad)
        return float(loss), digest(made.trainable_variables)

    first = train()
    # Statistics of the batches are each process's own.
    for variable in made.non_trainable_variables:
        torch.distributed.broadcast(variable.value.data, 0)
    report = n2n.grow(made, operations())
    grown = digest(made.variables)
    second = train()
    torch.distributed.destroy_process_group()
    return {
        "seed": report.plan.seed,
        "difference": report.difference,
        "losses": [first[0], second[0]],
        "grown": grown,
        "trained": second[1],
        "shapes": [list(v.shape) for v in made.variables],
    }


def main(kind: str, output: str, *arguments: str) -> None:
    kinds = {"mirrored": mirrored, "sharded": sharded}
    if kind in kinds:
        found = kinds[kind]()
    else:
        several = {"multi_worker": multi_worker, "parallel": parallel}
        found = several[kind](int(arguments[0]), *arguments[1:])
    with open(output, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
